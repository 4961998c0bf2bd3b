"""The rivals of scripts/bench/snapshot.py: what saving the same state costs with each of them."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from snapshot_unit import timed
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save


class Rivals:
    """torch.save, DCP and torchsnapshot, each writing the same state of this rank to tmpfs, one after the other.

    What one wrote is cleared away before the next one writes: all at once is more than the memory of a small machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rivals"
        self.stager = DefaultStager(StagingOptions(False, False, False, False))  # kept, it stages into warm memory

    def measure(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Seconds that each stops training for, and until async_save's checkpoint is complete."""
        mine = f"rank-{dist.get_rank()}"  # DCP would save a name that ranks share but once
        state = {mine: {"model": model.state_dict(), "optimizer": optimizer.state_dict()}}
        row = {}
        with self._emptied():
            row["torch_save"] = timed(lambda: torch.save(state, self.folder / f"{mine}.pt"))
        with self._emptied() as writer:
            row["dcp_save"] = timed(lambda: save(state, storage_writer=writer))
        with self._emptied() as writer:
            stall, complete = timed_async(lambda: async_save(state, storage_writer=writer))
            row |= {"dcp_async_save": stall, "dcp_async_save_complete": complete}
        with self._emptied() as writer:
            row["dcp_async_save_cached"] = timed_async(
                lambda: async_save(state, storage_writer=writer, async_stager=self.stager)
            )[0]
        with self._emptied() as writer:
            row["dcp_async_save_process"] = timed_async(
                lambda: async_save(state, storage_writer=writer, async_checkpointer_type=AsyncCheckpointerType.PROCESS)
            )[0]
        try:
            import torchsnapshot
        except Exception:  # it is not kept up with torch: an old build may fail in any way
            return row
        app = {"model": model, "optimizer": optimizer}
        with self._emptied():
            start = time.perf_counter()
            pending = torchsnapshot.Snapshot.async_take(str(self.folder), app)
            row["torchsnapshot"] = time.perf_counter() - start
            pending.wait()
        return row

    @contextlib.contextmanager
    def _emptied(self) -> Iterator[FileSystemWriter]:
        """An empty folder for all ranks, and DCP's writer into it; cleared away once every rank has written."""
        self.folder.mkdir(exist_ok=True)
        yield FileSystemWriter(self.folder, overwrite=True)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(self.folder)
        dist.barrier()


def timed_async(begin: Callable[[], Future[Any] | AsyncSaveResponse]) -> tuple[float, float]:
    """Seconds until the call is back, and until what it began is done."""
    dist.barrier()
    start = time.perf_counter()
    future = begin()
    stall = time.perf_counter() - start
    (future if isinstance(future, Future) else future.upload_completion).result()
    return stall, time.perf_counter() - start
