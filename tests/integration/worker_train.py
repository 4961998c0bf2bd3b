"""The training script of the worker tests: one of several models, written as a user would.

Arguments: variant, number of steps, file prefix for the outcome, step after which every rank dies (-1: none).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain
from ftrain.ddp import Buckets

torch.set_num_threads(1)
WIDTH = 48
SAMPLES = 200
OPTIONS = {
    "plain": {},
    "unreplayed": {},
    "find_unused": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "bucket_view": {"gradient_as_bucket_view": True},
    "accumulate": {"gradient_as_bucket_view": True},
    "two_models": {},
}


class Block(nn.Module):
    """Registered in another order than it is run in."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), 0.1, self.training)


class Net(nn.Module):
    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 7)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.stem = nn.Linear(16, WIDTH)
        self.frozen = nn.Linear(16, 16)
        self.frozen.requires_grad_(False)
        self.unused = nn.Linear(5, 5) if unused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(self.frozen(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def await_gate(ctx: ftrain.Context) -> None:
    """Return when the last commit is sealed and a slot is free: the next one is captured for certain."""
    ctx._session._capturer.finish()
    slots = ctx._session._slots
    deadline = time.monotonic() + 30
    while slots._gate is not None and slots._gate.gate()[0] == slots._last_ticket:
        assert time.monotonic() < deadline, "the gate stays shut"
        time.sleep(0.001)


@ftrain.resilient
def train(ctx: ftrain.Context, variant: str, total: int, prefix: str, die_after: int) -> None:
    torch.manual_seed(0)
    make = lambda: DDP(  # noqa: E731
        Net(unused=variant in ("find_unused", "static_graph")), bucket_cap_mb=0.03, **OPTIONS[variant]
    )
    models = [make() for _ in range(2 if variant == "two_models" else 1)]
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    if variant == "two_models":
        optimizer = torch.optim.SGD(parameters, lr=0.002, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    data = torch.randn(SAMPLES, 16, generator=torch.Generator().manual_seed(5))
    sampler = ftrain.ElasticSampler(SAMPLES, global_batch=26, seed=3)
    torch.manual_seed(100 + ctx.rank)
    tracked = {f"model{i}": model.module if i else model for i, model in enumerate(models)}
    ctx.track(**tracked, optimizer=optimizer, scheduler=scheduler, sampler=sampler)
    if ctx.start_step > 0:
        torch.rand(ctx.generation)  # what a resumed run draws here must not matter
    batches = iter(sampler)
    every = 3 if variant == "accumulate" else 1
    log = open(f"{prefix}.losses.{ctx.rank}", "a", buffering=1)  # noqa: SIM115
    for step in ctx.steps(total):
        if step == die_after:
            await_gate(ctx)
        x = data[next(batches)]
        update = (step + 1) % every == 0
        with nullcontext() if update else models[0].no_sync():
            loss = sum(F.mse_loss(model(x).mean(1), x.sum(1)) for model in models) / every
            loss.backward()
        print(json.dumps([step, loss.item()]), file=log)
        if update:
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        if step == die_after + 1:
            ctx._session._capturer.finish()  # or it may be killed before the last commit is copied
            os.kill(os.getpid(), signal.SIGKILL)
    log.close()
    dist.barrier()
    torch.save(
        {
            "model": [model.state_dict() for model in models],
            "calls": [block.calls for model in models for block in model.module.blocks],
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "sampler": sampler.state_dict(),
            "rng": torch.get_rng_state(),
        },
        f"{prefix}.end.{ctx.rank}",
    )


if __name__ == "__main__":
    if sys.argv[1] == "unreplayed":  # to see that the tests would notice
        Buckets.replay = lambda self, layout: None
    train(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
