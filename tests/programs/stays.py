"""A small training for recovery in the same processes: what makes leaving hard, and what is left behind by it.

Each rank writes a line whenever the function begins: generation, pid, threads, open files, resident bytes. At the end
it writes the hash of its model, and the same once more.
"""

import argparse
import gc
import hashlib
import os
import signal
import time
from pathlib import Path

import torch
from holding import add_argument, hold
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    add_argument(parser)
    parser.add_argument("--swallow", choices=["Exception", "BaseException"], help="what rank 0 catches in each step")
    parser.add_argument("--sleep-at", type=int, default=-1, help="rank 0 sleeps for long in this step, once")
    parser.add_argument("--sum-at", type=int, default=-1, help="rank 0 is busy in C, with the GIL, in this step, once")
    parser.add_argument("--die-each", type=int, default=0, help="rank 1 kills itself so many steps after each start")
    parser.add_argument("--die-early", type=int, default=0, help="in this generation rank 2 kills itself at its start")
    parser.add_argument("--generations", type=int, default=0, help="no rank dies by itself in later ones")
    return parser.parse_args()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    look(args.out / f"seen-{ctx.rank}", ctx.generation)
    if ctx.rank == 2 and ctx.generation == args.die_early:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    model = DDP(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ctx.track(model=model, optimizer=optimizer)
    first = None
    for step in ctx.steps(args.steps):
        first = step if first is None else first
        hold(args, step)
        if ctx.rank == 1 and 0 < args.die_each == step - first and ctx.generation < args.generations:
            if args.swallow:
                wait_asleep(args.out / f"in-step-{step}")
            os.kill(os.getpid(), signal.SIGKILL)
        data = torch.randn(8, 16, generator=torch.Generator().manual_seed(step * 8 + ctx.rank))
        if args.swallow is None or ctx.rank != 0:
            one_step(args, ctx, step, model, optimizer, data)
        else:
            stubborn_step(args, ctx, step, model, optimizer, data)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    digest.update(torch.get_rng_state().numpy().tobytes())
    look(args.out / f"seen-{ctx.rank}", ctx.generation)
    (args.out / f"end-{ctx.rank}").write_text(digest.hexdigest())


def one_step(args, ctx, step, model, optimizer, data) -> None:
    if ctx.rank == 0 and step == args.sleep_at and first_time(args.out / "slept"):
        time.sleep(1000)
    if ctx.rank == 0 and step == args.sum_at and first_time(args.out / "summed"):
        sum(range(10**12))
    model(data).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def stubborn_step(args, ctx, step, model, optimizer, data) -> None:
    """As a script might that has seen a batch fail before."""
    caught = Exception if args.swallow == "Exception" else BaseException
    marker = args.out / f"in-step-{step}"
    marker.with_suffix(".tmp").write_text(str(os.getpid()))
    marker.with_suffix(".tmp").rename(marker)
    while True:
        try:
            while True:
                try:
                    return one_step(args, ctx, step, model, optimizer, data)
                except caught as error:
                    note(args.out / "swallowed", type(error).__name__)
        except caught as error:  # while it was being noted
            note(args.out / "swallowed", type(error).__name__)


def note(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")
    time.sleep(0.01)


def wait_asleep(marker: Path) -> None:
    """Until the process that wrote this waits for its peers, seen twice in a row."""
    asleep = 0
    while asleep < 2:
        time.sleep(0.01)
        stat = Path("/proc", marker.read_text(), "stat").read_text() if marker.exists() else ") R"
        asleep = asleep + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0


def first_time(marker: Path) -> bool:
    if marker.exists():
        return False
    marker.touch()
    return True


def look(path: Path, generation: int) -> None:
    gc.collect()
    threads, files = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with path.open("a") as file:
        file.write(f"{generation} {os.getpid()} {threads} {files} {resident}\n")


if __name__ == "__main__":
    train()
