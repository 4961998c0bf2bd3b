"""What survivors save by keeping their live tensors: the training that breaks itself, and the table that it leaves.

    ftrain run --local-nodes 4 --nproc-per-node 1 --standby 1 --max-restarts 100 scripts/bench/keeping.py FOLDER

Rank 1 kills itself in the third step of each generation, before its backward. In every other generation nothing is
held, so that all ranks read their state, as in a new process. Each rank notes what it cost to have its state back: the
processor seconds and page faults of its process, and how much it read. Rank 0 prints the survivors' medians at the end.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain
from ftrain.session import Session

WIDTH, LAYERS = 1024, 16
"""67 MB of parameters, and twice as much of moments: 201 MB on each rank."""
GENERATIONS = 13
PAUSE_SECONDS = 2.0
"""Of each step, so that each is captured."""

_hold, _read = Session.hold, Session._read


def spent() -> tuple[float, int]:
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def read(session: Session, objects: Mapping[str, Any]) -> dict[str, Any]:
    """`Session._read`, and a note of it."""
    before = spent()
    tree = _read(session, objects)
    seconds, faults = (after - earlier for after, earlier in zip(spent(), before, strict=True))
    note = {"generation": session._job.generation, "seconds": seconds, "faults": faults}
    with (Path(sys.argv[1]) / f"rank-{session._rank}").open("a") as file:
        print(json.dumps({**note, "read": session._read_bytes, "kept": session._kept_bytes}), file=file)
    return tree


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    Session._read = read  # type: ignore[assignment, method-assign]
    Session.hold = _hold if ctx.generation % 2 else lambda self: None  # type: ignore[method-assign]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DDP(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))))
    optimizer = torch.optim.AdamW(model.parameters())
    ctx.track(model=model, optimizer=optimizer)
    first = ctx.start_step
    for step in ctx.steps(GENERATIONS * 3):
        time.sleep(PAUSE_SECONDS)
        if ctx.rank == 1 and step == first + 2 and ctx.generation < GENERATIONS:
            os.kill(os.getpid(), signal.SIGKILL)
        if ctx.generation == GENERATIONS:
            break
        model(torch.randn(1, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if ctx.rank == 0:
        report(Path(sys.argv[1]))


def report(folder: Path) -> None:
    """Of the ranks that are never killed."""
    entries = [json.loads(line) for rank in (0, 2, 3) for line in (folder / f"rank-{rank}").read_text().splitlines()]
    sides: dict[str, list[dict[str, Any]]] = {
        "kept": [entry for entry in entries if entry["kept"]],
        "read": [entry for entry in entries if not entry["kept"]],
    }
    for name, side in sides.items():
        medians = {key: statistics.median(entry[key] for entry in side) for key in ("seconds", "faults", "read")}
        print(name, len(side), {key: round(value, 4) for key, value in medians.items()}, flush=True)


if __name__ == "__main__":
    train()
