"""What the chaos tests train: most of what a user's script has that could come back wrong.

DDP with small buckets and layers in another order than they run, BatchNorm, dropout, a scheduler, gradient
accumulation, AdamW or SGD with momentum. Every rank appends a line a step (step, loss to the last bit, samples);
at the end it writes the hash of all that it holds. Options make it go wrong: it raises, exits, or computes what is no
number.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import json
import os
import random
import time
from pathlib import Path

import numpy
import torch
from holding import add_argument, hold, wait_until_let
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain

SAMPLES = 96
GATE_TIMEOUT_SECONDS = 120.0


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.last = nn.Linear(width, 1)
        self.middle = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.2)
        self.first = nn.Linear(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(torch.relu(self.first(x)))
        return self.last(self.dropout(torch.relu(self.middle(hidden))))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    add_argument(parser)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--raise-at", type=int, default=-1, help="every rank 1 raises at this step, every time")
    parser.add_argument("--exit-at", type=int, default=-1, help="rank 1 exits with code 3 at this step, once")
    parser.add_argument("--spin-at", type=int, default=-1, help="rank 1 never ends this step, and holds the GIL, once")
    parser.add_argument("--late-at", type=int, default=-1, help="rank 1 ends this step when it is let go, once")
    parser.add_argument("--poison-after", type=int, default=-1, help="write infinity into a weight after it, once")
    parser.add_argument("--nan-from", type=int, default=-1, help="rank 1's loss is no number from this step on")
    parser.add_argument("--log", action="store_true", help="say each step's loss")
    return parser.parse_args()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))
    target = data.square().sum(1, keepdim=True).sin()
    model = DDP(Net(args.width), bucket_cap_mb=0.005)
    if args.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=args.steps)
    sampler = ftrain.ElasticSampler(SAMPLES, global_batch=args.batch, seed=3)
    ctx.track(model=model, optimizer=optimizer, scheduler=scheduler, sampler=sampler)
    random.seed(ctx.rank)
    numpy.random.seed(ctx.rank)
    torch.manual_seed(100 + ctx.rank)
    batches = iter(sampler)
    log = args.out / f"rank-{ctx.rank}.jsonl"
    for step in ctx.steps(args.steps):
        hold(args, step)
        if ctx.rank == 1 and step == args.raise_at:
            raise ValueError("this training cannot go on")
        if ctx.rank == 1 and step == args.exit_at and ctx.generation == 1:
            raise SystemExit(3)
        if ctx.rank == 1 and step == args.spin_at:
            spin(args.out / "spun")
        indices = next(batches)
        noise = random.random() + float(numpy.random.rand())
        total = 0.0
        pieces = [indices[i :: args.accumulate] for i in range(args.accumulate)]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with contextlib.nullcontext() if last else model.no_sync():
                loss = nn.functional.mse_loss(model(data[piece] + 0.01 * noise), target[piece]) / len(pieces)
                if ctx.rank == 1 and 0 <= args.nan_from <= step:
                    loss = loss * float("nan")
                loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        line = {"generation": ctx.generation, "step": step, "loss": total.hex(), "samples": indices}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if args.log:
            ctx.log(loss=total)
        if ctx.rank == 1 and step == args.late_at and ctx.generation == 1:
            wait_until_let(args.out / "late")
        if step == args.poison_after:
            poison(args.out / f"poisoned-{ctx.rank}", ctx, model)
    finish(args, ctx, model, optimizer, scheduler)


def spin(marker: Path) -> None:
    """Once: no other thread of this process gets to run any more."""
    if not marker.exists():
        marker.touch()
        collections.deque(itertools.repeat(0), maxlen=0)


def poison(marker: Path, ctx: ftrain.Context, model: nn.Module) -> None:
    """Once, and not before the gate is open: the state with the infinity is captured, and must not be gone on from."""
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


def finish(args, ctx, model, optimizer, scheduler) -> None:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            shown = value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode()
            digest.update(f"{index}.{key}".encode() + shown)
    digest.update(repr(scheduler.get_last_lr()).encode())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr((random.random(), float(numpy.random.rand()))).encode())
    part = args.out / f"end-{ctx.rank}.part"
    part.write_text(digest.hexdigest())
    os.replace(part, args.out / f"end-{ctx.rank}")


if __name__ == "__main__":
    train()
