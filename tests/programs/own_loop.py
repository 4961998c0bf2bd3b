"""What users write who do not use ``ctx.steps``: a loop of their own, with what else is easily lost.

Two DDP models, one tracked without its wrapper and one with unused parameters looked for; gradients that accumulate
across commits; a moving average; a scheduler that watches a metric; a DataLoader with workers.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from holding import add_argument, hold
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, Dataset

import ftrain

SAMPLES = 101


class Points(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        return index, torch.randn(6, generator=generator), torch.randn(1, generator=generator)


class MovingAverage:
    """State that no optimizer owns, with a plain state_dict."""

    def __init__(self, module: nn.Module) -> None:
        self.means = [p.detach().clone() for p in module.parameters()]
        self.updates = 0

    def update(self, module: nn.Module) -> None:
        self.updates += 1
        for mean, parameter in zip(self.means, module.parameters(), strict=True):
            mean.mul_(0.9).add_(parameter.detach(), alpha=0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self.means), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for mean, saved in zip(self.means, state["means"], strict=True):
            mean.copy_(saved)


@ftrain.resilient
def train(ctx: ftrain.Context, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    wrapped = DDP(net, bucket_cap_mb=0.001)
    critic = DDP(nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 1)), find_unused_parameters=True)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3, amsgrad=True)
    critic_optimizer = torch.optim.SGD(critic.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    average = MovingAverage(net)
    sampler = ftrain.ElasticSampler(SAMPLES, global_batch=20, seed=5)
    ctx.track(net=net, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer, scheduler=scheduler)
    ctx.track(average=average, sampler=sampler)
    loader = iter(DataLoader(Points(), batch_sampler=sampler, num_workers=1))  # draws from torch's generator
    log = args.out / f"rank-{ctx.rank}.jsonl"
    for step in range(ctx.start_step, args.steps):
        hold(args, step)
        indices, inputs, targets = next(loader)
        predicted = wrapped(inputs)
        loss = nn.functional.mse_loss(predicted, targets)
        loss.backward()
        if step % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
        critic(torch.cat([inputs, predicted.detach()], 1)).mean().backward()
        critic_optimizer.step()
        critic_optimizer.zero_grad()
        average.update(net)
        scheduler.step(1.0 / (1 + step // 5))
        entry = {"generation": ctx.generation, "step": step, "loss": loss.item().hex(), "samples": indices.tolist()}
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        ctx.commit(step)
    held = (net, critic, optimizer, critic_optimizer, scheduler, average)
    digest = hashlib.sha256()
    for item in held:
        add(digest, item.state_dict())
    (args.out / f"end-{ctx.rank}").write_text(digest.hexdigest())


def add(digest: Any, value: Any) -> None:
    """All of a state, to the last bit."""
    if isinstance(value, torch.Tensor):
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key, inner in value.items():
            digest.update(str(key).encode())
            add(digest, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            add(digest, inner)
    else:
        digest.update(repr(value).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    add_argument(parser)
    train(parser.parse_args())
