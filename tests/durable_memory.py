"""The memory of a job that nobody trains, its writers, and a comparison to the last bit of what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durable_job as job
import numpy as np
import torch

from ftrain.durable.reader import Checkpoint, read_state
from ftrain_snapshot.storage import Storage
from ftrain_snapshot.words import SnapshotId


class Writers:
    """The process that forks writers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, job.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *writers: tuple[Path | None, list[str], int]) -> list[tuple[int, int, str]]:
        """(exit code, times it could have been killed, stderr) of each."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([[root and str(root), args, at] for root, args, at in writers]) + "\n")
        self.process.stdin.flush()
        return [tuple(end) for end in json.loads(self.process.stdout.readline())]

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def started_writers() -> Iterator[Writers]:
    """What a module's fixture ``writers`` yields."""
    with Writers() as found:
        yield found


class Memory:
    """A job of some ranks, captured into node folders; nobody trains."""

    def __init__(self, root: Path, positions: int = 2, lanes: int = 1) -> None:
        self.root, self.positions, self.lanes = root, positions, lanes
        self.url = str(root / "checkpoints")
        self.world_size = positions * lanes
        self.ranks = [job.build(rank, self.world_size) for rank in range(self.world_size)]
        self.trees: list[dict[str, Any]] = []

    def capture(self, step: int, generation: int = 1) -> SnapshotId:
        snapshot = SnapshotId(step, generation, step % 3)
        self.trees = [job.tree_of(objects, step) for objects in self.ranks]
        for rank, objects in enumerate(self.ranks):
            position, lane = divmod(rank, self.lanes)
            job.capture(objects, rank, self.world_size, snapshot, self.root / f"node{position}", lane)
        return snapshot

    def writer(self, position: int, snapshot: SnapshotId, *more: str, kill_at: int = 0) -> tuple[Path, list[str], int]:
        return self.root, [*self.arguments(position, snapshot), *more], kill_at

    def arguments(self, position: int, snapshot: SnapshotId) -> list[str]:
        given = {
            "node-dir": self.root / f"node{position}", "url": self.url, "positions": self.positions,
            "position": position, "lanes": self.lanes, "job": "test", "timeout-seconds": 200,
            "snapshot": f"{snapshot.version}:{snapshot.generation}:{snapshot.slot}",
        }  # fmt: skip
        return [word for key, value in given.items() for word in (f"--{key}", str(value))]

    def write(self, writers: Writers, snapshot: SnapshotId, *more: str) -> None:
        ends = writers.run(*(self.writer(position, snapshot, *more) for position in range(self.positions)))
        assert [(code, err) for code, _, err in ends] == [(0, "")] * self.positions

    def steps(self) -> list[int]:
        return [found.step for found in Storage(self.url).checkpoints()]

    def check_resume(self, step: int) -> None:
        """Every rank reads back, bit by bit, what it captured last."""
        for rank, tree in enumerate(self.trees):
            found = read_state(Checkpoint(Storage(self.url).path(step)), rank, self.world_size)
            assert_bits(found.tree, tree, f"rank {rank}")


def assert_bits(got: Any, want: Any, where: str) -> None:
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), where
        assert (got.dtype, got.shape) == (want.dtype, want.shape), where
        flat = [each.detach().contiguous().view(-1).view(torch.uint8) for each in (got, want)]
        assert torch.equal(*flat), where
        if want.is_contiguous(memory_format=torch.channels_last) if want.dim() == 4 else want.is_contiguous():
            assert got.stride() == want.stride(), where
        return
    assert type(got) is type(want), where
    if isinstance(want, dict):
        assert list(got) == list(want), where
        for key in want:
            assert_bits(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), where
        for index, value in enumerate(want):
            assert_bits(got[index], value, f"{where}[{index}]")
    elif isinstance(want, np.ndarray):
        assert got.dtype == want.dtype, where
        assert (got == want).all(), where
    else:
        assert got == want, where
