"""A training that goes wrong: at a step, infinity is written into a weight (once), or the loss is no number (always).

The net and the hash at the end are those of train.py. The step to be poisoned waits until the gate is open, so that its
state, with the infinity in it, is captured: it is the snapshot that must not be gone on from.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from train import SAMPLES, Net, finish

import ftrain

GATE_TIMEOUT_SECONDS = 30.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--poison-after", type=int, default=-1, help="write infinity into a weight after this step")
    parser.add_argument("--nan-from", type=int, default=-1, help="from this step on the loss of rank 1 is no number")
    return parser.parse_args()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
    target = data.square().sum(1, keepdim=True).sin()
    model = DDP(Net(32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    sampler = ftrain.ElasticSampler(SAMPLES, global_batch=24, seed=3)
    ctx.track(model=model, optimizer=optimizer, scheduler=scheduler, sampler=sampler)
    random.seed(ctx.rank)
    numpy.random.seed(ctx.rank)
    torch.manual_seed(100 + ctx.rank)
    batches = iter(sampler)
    for step in ctx.steps(args.steps):
        indices = next(batches)
        loss = nn.functional.mse_loss(model(data[indices]), target[indices])
        if ctx.rank == 1 and 0 <= args.nan_from <= step:
            loss = loss * float("nan")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        ctx.log(loss=loss)
        with (args.out / f"rank-{ctx.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"generation": ctx.generation, "step": step, "loss": loss.item().hex()}) + "\n")
        if step == args.poison_after:
            poison(args.out / f"poisoned-{ctx.rank}", ctx, model)
    finish(args, ctx, model, optimizer, scheduler)


def poison(marker: Path, ctx: ftrain.Context, model: nn.Module) -> None:
    if marker.exists():
        return
    if ctx.rank == 0:
        wait_for_gate(ctx)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("inf")
    marker.touch()


def wait_for_gate(ctx: ftrain.Context) -> None:
    """Until the next commit will be captured."""
    slots = ctx._session._slots
    deadline = time.monotonic() + GATE_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        ticket, slot = slots._gate.gate()
        if slot >= 0 and ticket != slots._last_ticket:
            return
        time.sleep(0.001)
    raise TimeoutError("the gate stays closed")


if __name__ == "__main__":
    train()
