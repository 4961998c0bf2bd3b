"""Models in bfloat16 whose float32 masters nobody has but their optimizers: one plain, one under FSDP2.

Gradients of the plain one are averaged by hand. Each rank appends a line a step: the losses, and the hash of all that
is trained, FSDP2's tensors whole; so does a generation that resumes, before its first step (``start``). At the end it
writes that hash. ``--drift``: each rank has masters of its own from the start.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from holding import add_argument, hold
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ftrain


class Part:
    """A model, its masters, and the optimizer that steps them."""

    def __init__(self, model: nn.Module, drift: float = 0.0) -> None:
        self.model = model
        self.masters = [nn.Parameter(parameter.detach().float() + drift) for parameter in model.parameters()]
        half = len(self.masters) // 2
        groups = [{"params": self.masters[:half]}, {"params": self.masters[half:], "lr": 2e-2}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2)

    def step(self, x: Tensor) -> float:
        loss = self.model(x.bfloat16()).float().square().mean()
        loss.backward()
        for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
            master.grad = parameter.grad.float()
            if not isinstance(master, DTensor):
                dist.all_reduce(master.grad)
                master.grad /= dist.get_world_size()
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
                parameter.copy_(master)
        self.optimizer.zero_grad()
        self.model.zero_grad()
        return float(loss.detach())

    def tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        for master in self.masters:
            yield master
            yield from self.optimizer.state.get(master, {}).values()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5)).bfloat16()


def sharded() -> nn.Sequential:
    model = net()
    fully_shard(model[0])
    return fully_shard(model)


def digest(parts: dict[str, Part]) -> str:
    """A collective."""
    found = hashlib.sha256()
    for part in parts.values():
        for tensor in part.tensors():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found.update(whole.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--drift", action="store_true")
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {"plain": Part(net(), 1e-3 * ctx.rank * args.drift), "fsdp": Part(sharded())}
    tracked: dict[str, Any] = {name: part.model for name, part in parts.items()}
    ctx.track(**tracked, **{f"{name}_optimizer": part.optimizer for name, part in parts.items()})
    with (args.out / f"rank-{ctx.rank}.jsonl").open("a", buffering=1) as log:

        def note(**entry: Any) -> None:
            log.write(json.dumps({"ranks": ctx.world_size, "digest": digest(parts), **entry}) + "\n")

        if ctx.start_step:
            note(step=-ctx.start_step, start=ctx.start_step)
        for step in ctx.steps(args.steps):
            hold(args, step)
            x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1000 * step + ctx.rank))
            note(step=step, loss={name: part.step(x).hex() for name, part in parts.items()})
    (args.out / f"end-{ctx.rank}").write_text(digest(parts))


if __name__ == "__main__":
    train()
