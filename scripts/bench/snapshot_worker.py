"""The worker of scripts/bench/snapshot.py: state of a given size, snapshotted by ftrain and by its rivals in turn.

    snapshot_worker.py FOLDER --mib N --rounds N [--replicated] [--rivals]

Each round: the optimizer changes every byte; then, each behind a barrier, so that all ranks do the same thing at
once: one ``copy_`` of the same number of bytes into warm shared memory (the unit), ``ctx.commit``, and with
--rivals torch.save, DCP's save and async_save, to tmpfs. After the commit the rank waits for FOLDER/go-ROUND, which
the benchmark writes when the daemons are done, so that nothing is measured against their work. Times go to
FOLDER/rank-N.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save, save
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain

WIDTH = 1024
LAYER_BYTES = WIDTH * WIDTH * 4 * 3  # a weight and AdamW's two moments
GO_TIMEOUT_SECONDS = 120.0


class Weights(nn.Module):
    """Square weights, nothing else; they differ between ranks unless DDP makes them equal."""

    def __init__(self, layers: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH, generator=generator) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = x @ weight
        return x


class Unit:
    """One ``copy_`` of so many bytes into shared memory whose pages are all there."""

    def __init__(self, size_bytes: int, folder: Path) -> None:
        path = folder / f"unit-{dist.get_rank()}"
        self.source = torch.ones(size_bytes, dtype=torch.uint8)
        self.target = torch.from_file(str(path), shared=True, size=size_bytes, dtype=torch.uint8)
        path.unlink()
        for _ in range(2):
            self.copy()

    def copy(self) -> None:
        self.target.copy_(self.source)


def timed(action: Callable[[], object]) -> float:
    """Seconds of the action, begun by all ranks together."""
    dist.barrier()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Rivals:
    """torch.save and DCP, each writing the same state of this rank to tmpfs, over the file of the round before."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"rank-{dist.get_rank()}.pt"
        self.plain = FileSystemWriter(folder / "dcp", overwrite=True)
        self.asynchronous = FileSystemWriter(folder / "dcp-async", overwrite=True)
        self.cached = FileSystemWriter(folder / "dcp-cached", overwrite=True)
        self.stager = DefaultStager(StagingOptions(False, False, False, False))  # kept, it stages into warm memory

    def measure(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Seconds that each stops training for, and until async_save's checkpoint is complete."""
        mine = f"rank-{dist.get_rank()}"  # DCP would save a name that ranks share but once
        state = {mine: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}}
        stall, complete = timed_async(lambda: async_save(state, storage_writer=self.asynchronous))
        return {
            "torch_save": timed(lambda: torch.save(state, self.file)),
            "dcp_save": timed(lambda: save(state, storage_writer=self.plain)),
            "dcp_async_save": stall,
            "dcp_async_save_complete": complete,
            "dcp_async_save_cached": timed_async(
                lambda: async_save(state, storage_writer=self.cached, async_stager=self.stager)
            )[0],
        }


def timed_async(begin: Callable[[], Future[Any] | AsyncSaveResponse]) -> tuple[float, float]:
    """Seconds until the call is back, and until what it began is done."""
    dist.barrier()
    start = time.perf_counter()
    future = begin()
    stall = time.perf_counter() - start
    (future if isinstance(future, Future) else future.upload_completion).result()
    return stall, time.perf_counter() - start


def wait_go(folder: Path, number: int) -> bool:
    """Wait for the benchmark to say that the daemons are done; whether the snapshot was taken."""
    path = folder / f"go-{number}"
    deadline = time.monotonic() + GO_TIMEOUT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {path} after {GO_TIMEOUT_SECONDS} s")
        time.sleep(0.01)
    return path.read_text() == "protected"


@ftrain.resilient
def measure(ctx: ftrain.Context) -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    layers = max(1, args.mib * 2**20 // LAYER_BYTES)
    weights = Weights(layers, seed=0 if args.replicated else ctx.rank)
    model: nn.Module = DDP(weights) if args.replicated else weights
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    ctx.track(model=model, optimizer=optimizer)
    state_bytes = layers * LAYER_BYTES
    unit = Unit(state_bytes // ctx.world_size if args.replicated else state_bytes, args.folder)

    rivals = Rivals(args.folder)
    rounds = []
    for number in range(args.rounds + 1):
        optimizer.step()
        row = {"bytes": float(unit.source.numel()), "unit": timed(unit.copy)}
        row["ftrain"] = timed(lambda step=number: ctx.commit(step))  # type: ignore[misc]
        (args.folder / f"committed-{number}-{ctx.rank}").touch()
        taken = wait_go(args.folder, number)
        if args.rivals:
            row |= rivals.measure(model, optimizer)
        if taken and number > 0:  # the first makes the plan and the optimizer's state: no step of a long run
            rounds.append(row)
    (args.folder / f"rank-{ctx.rank}.json").write_text(json.dumps(rounds))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mib", type=int, required=True, help="bytes of state, of each rank")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--replicated", action="store_true", help="the ranks' state is equal, under DDP")
    parser.add_argument("--rivals", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", message="Detected an existing checkpoint")
    measure()
