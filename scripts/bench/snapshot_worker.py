"""The worker of scripts/bench/snapshot.py: state of a given size, trained on, snapshotted by ftrain and by its rivals.

    snapshot_worker.py stall|steps|frozen|python|restore FOLDER [--mib N] [--rounds N] [options]

- *stall*: rounds of one ``copy_`` into warm shared memory (the unit), a commit, a forward and backward that take
  longer than the copy, and an optimizer's step. With --replicated the ranks' state is equal, under DDP, and the unit
  is one rank's part. With --rivals each saves the same state afterwards, to tmpfs. After its step the rank waits for
  FOLDER/go-ROUND, which the benchmark writes when the daemons are done.
- *steps*: blocks of steps with a commit after each and blocks without, in turn. With --idle only rank 0 computes; then
  there are blocks without, too, in which the other rank copies all the time: what any work beside it costs the step.
- *frozen*: a model of which 1 % is trained; what a snapshot copies, codes and sends.
- *python*: what a commit costs the training thread when the state is 2,000 small tensors.
- *restore*: what it takes to get the state back from this node's memory, in new objects; one copy is the unit.

Figures go to FOLDER/rank-N.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from snapshot_rivals import Rivals
from snapshot_unit import Unit, lend, timed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain
from ftrain.capture import Capturer
from ftrain.restore import read_state
from ftrain.state import load_state

WIDTH = 1024
LAYER_BYTES = WIDTH * WIDTH * 4 * 3  # a weight and AdamW's two moments
GO_TIMEOUT_SECONDS = 120.0
BLOCK_STEPS = 5
SMALL_PARAMETERS = 500  # with AdamW's step, exp_avg and exp_avg_sq, 2,000 tensors
Row = dict[str, float]


class Weights(nn.Module):
    """Square weights, nothing else; they differ between ranks unless DDP makes them equal."""

    def __init__(self, layers: int, seed: int, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(WIDTH, WIDTH, generator=generator).to(device) / 32 for _ in range(layers)]
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


def wait_go(folder: Path, number: int) -> bool:
    """Wait for the benchmark to say that the daemons are done; whether the snapshot was taken."""
    path = folder / f"go-{number}"
    deadline = time.monotonic() + GO_TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path} after {GO_TIMEOUT_SECONDS} s")
        time.sleep(0.01)
    return path.read_text() == "protected"


class Training:
    """A model and its optimizer, of about so many bytes together, and a batch that keeps a step busy."""

    def __init__(self, ctx: ftrain.Context, args: argparse.Namespace) -> None:
        self.device = torch.device("cuda") if args.device == "cuda" else torch.device("cpu")
        self.layers = max(1, args.mib * 2**20 // LAYER_BYTES)
        weights = Weights(self.layers, 0 if args.replicated else ctx.rank, self.device)
        self.model: nn.Module = DDP(weights) if args.replicated else weights
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.batch = torch.randn(args.batch, WIDTH, device=self.device)
        self.state_bytes = self.layers * LAYER_BYTES
        self.capturer: Capturer = ctx._session._capturer if ctx._session is not None else None  # type: ignore[assignment]

    def forward_backward(self) -> None:
        self.model(self.batch).square().mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def stall(ctx: ftrain.Context, args: argparse.Namespace) -> list[Row]:
    training = Training(ctx, args)
    ctx.track(model=training.model, optimizer=training.optimizer)
    size = training.state_bytes // ctx.world_size if args.replicated else training.state_bytes
    unit = Unit(size, args.folder, training.device)
    rivals = Rivals(args.folder) if args.rivals else None
    rows = []
    for number in range(args.rounds + 2):
        training.forward_backward()
        training.update()
        row = {"bytes": float(size), "unit": timed(unit.copy, training.device)}
        row["commit"] = timed(lambda step=number: ctx.commit(step), together=True)  # type: ignore[misc]
        row["forward_backward"] = timed(training.forward_backward, training.device, together=False)
        row["wait"] = timed(training.capturer.wait_copied, together=False)
        row["ftrain"] = row["commit"] + row["wait"]
        training.update()
        training.capturer.finish()
        (args.folder / f"committed-{number}-{ctx.rank}").touch()
        taken = wait_go(args.folder, number)
        if rivals is not None and number > 1:
            row |= rivals.measure(training.model, training.optimizer)
        if taken and number > 1:  # the first makes the plan and the optimizer's state: no step of a long run
            rows.append(row)
    return rows


@contextlib.contextmanager
def copying(unit: Unit | None) -> Iterator[None]:
    """Meanwhile a thread copies over and over; None: nobody does."""
    over = threading.Event()

    def copy() -> None:
        while unit is not None and not over.is_set():
            unit.copy()

    thread = threading.Thread(target=copy)
    thread.start()
    yield
    over.set()
    thread.join()


def steps(ctx: ftrain.Context, args: argparse.Namespace) -> list[Row]:
    training = Training(ctx, args)
    ctx.track(model=training.model, optimizer=training.optimizer)
    assert ctx._session is not None
    daemon = ctx._session._arena.client
    computes = ctx.rank == 0 or not args.idle
    unit = None if computes else Unit(training.state_bytes, args.folder, training.device)

    def step() -> None:
        if computes:
            training.forward_backward()
            training.update()

    rows = []
    committed = 0
    for block in range(args.rounds + 1):
        row = {}
        skipped = daemon.status().skipped
        for name in ("with", "without", "beside") if args.idle else ("with", "without"):
            dist.barrier()
            with copying(unit if name == "beside" else None):
                start = time.perf_counter()
                for _ in range(BLOCK_STEPS):
                    step()
                    if name == "with":
                        ctx.commit(committed)
                        committed += 1
                    dist.barrier()
                training.capturer.wait_copied()
                row[name] = (time.perf_counter() - start) / BLOCK_STEPS
            training.capturer.finish()
            time.sleep(args.rest)  # the daemons end what they are at, and count for the block it belongs to no more
        row["skipped"] = (daemon.status().skipped - skipped) / BLOCK_STEPS
        if block:
            rows.append(row)
    return rows


def frozen(ctx: ftrain.Context, args: argparse.Namespace) -> list[Row]:
    training = Training(ctx, args)
    model = nn.ModuleDict({"base": training.model.requires_grad_(False), "adapter": nn.Linear(WIDTH, WIDTH // 3)})
    # Weights and no moments, so that one part in a hundred of the parameters is one of the state.
    optimizer = torch.optim.SGD(model["adapter"].parameters(), lr=1e-3)
    ctx.track(model=model, optimizer=optimizer)
    assert ctx._session is not None
    rows = []
    for number in range(args.rounds + 2):
        model["adapter"](torch.randn(8, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ctx.commit(number)
        training.capturer.finish()
        (args.folder / f"committed-{number}-{ctx.rank}").touch()
        taken = wait_go(args.folder, number)
        newest = training.capturer.newest
        if taken and number > 1 and newest is not None:
            lane = ctx._session._arena.lane
            header = lane.regions[newest.slot].header()[1]
            assert header is not None
            last = ctx._session._arena.client.status().last
            row = {"copied": lane.regions[newest.slot].copied_bytes, "coded": last.coded_bytes, "sent": last.sent_bytes}
            rows.append({name: value / header.data_bytes for name, value in row.items()})
    return rows


def python(ctx: ftrain.Context, args: argparse.Namespace) -> list[Row]:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(SMALL_PARAMETERS // 2)])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ctx.track(model=model, optimizer=optimizer)
    capturer = ctx._session._capturer  # type: ignore[union-attr]
    rows = []
    for number in range(args.rounds + 2):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        dropped, newest = capturer.dropped, capturer.newest
        dist.barrier()  # as after a step: nobody waits for rank 0 to get here
        start, cpu = time.perf_counter(), time.thread_time()
        ctx.commit(number)
        row = {"wall": time.perf_counter() - start, "cpu": time.thread_time() - cpu}
        capturer.finish()
        (args.folder / f"committed-{number}-{ctx.rank}").touch()
        wait_go(args.folder, number)
        if number > 1 and capturer.newest != newest and capturer.dropped == dropped:
            rows.append(row)
    return rows


def restore(ctx: ftrain.Context, args: argparse.Namespace) -> list[Row]:
    training = Training(ctx, args)
    objects = {"model": training.model, "optimizer": training.optimizer}
    ctx.track(**objects)
    training.forward_backward()
    training.update()
    ctx.commit(0)
    training.capturer.finish()
    newest = training.capturer.newest
    assert newest is not None
    assert ctx._session is not None
    lane = ctx._session._arena.lane
    unit = Unit(training.state_bytes, args.folder, training.device)
    (args.folder / f"committed-0-{ctx.rank}").touch()
    wait_go(args.folder, 0)  # the daemons are at rest
    rows = []
    for _ in range(args.rounds + 1):  # the first imports, and starts threads
        fresh = Training(ctx, args)
        into = {"model": fresh.model, "optimizer": fresh.optimizer}

        def back(into: dict[str, Any] = into) -> None:
            found = read_state(lane.regions[newest.slot], lane.homes, newest, ctx.rank, ctx.world_size, into)
            for name, tracked in into.items():
                load_state(name, tracked, found.tree["objects"][name])

        row = {"unit": timed(unit.copy)}
        lend(training.state_bytes)
        rows.append(row | {"restore": timed(back)})
        del fresh, into, back
    return rows[1:]


KINDS: dict[str, Callable[[ftrain.Context, argparse.Namespace], list[Row]]] = {
    "stall": stall,
    "steps": steps,
    "frozen": frozen,
    "python": python,
    "restore": restore,
}


@ftrain.resilient
def measure(ctx: ftrain.Context) -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    rows = KINDS[args.kind](ctx, args)
    (args.folder / f"rank-{ctx.rank}.json").write_text(json.dumps(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mib", type=int, default=480, help="bytes of state, of each rank")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="samples of a step: how long it takes")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between blocks of steps")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--replicated", action="store_true", help="the ranks' state is equal, under DDP")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--idle", action="store_true", help="only rank 0 computes")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
    measure()
