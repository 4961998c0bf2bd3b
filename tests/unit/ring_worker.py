"""A made-up worker that writes its ring, and what an agent's reader makes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ftrain.comm.ring import PYTHON, Identity, ring_path
from ftrain.comm.writer import Call, Entered, RingWriter
from ftrain_launcher.detect.records import NodeReport, Op, RankRecord
from ftrain_launcher.rings.rank_reader import RankReader
from ftrain_launcher.rings.reader import CommReader

MS = 1_000_000
SECOND = 1000 * MS
WORLD = (0, 1, 2, 3)
PID_NOBODY_HAS = 2**31 - 2


class Clock:
    """A made-up CLOCK_MONOTONIC in nanoseconds."""

    def __init__(self) -> None:
        self.ns = 1000 * SECOND

    def __call__(self) -> int:
        return self.ns

    def tick(self, milliseconds: float) -> None:
        self.ns += int(milliseconds * MS)


class Worker:
    """A made-up worker that writes its ring."""

    def __init__(self, folder: Path, *, rank: int = 0, generation: int = 1, pid: int | None = None) -> None:
        self.clock = Clock()
        self.pid = os.getpid() if pid is None else pid
        identity = Identity(PYTHON, self.pid, rank, rank, len(WORLD), generation)
        self.place = (rank, rank, self.pid)
        self.path = ring_path(folder, rank)
        self.ring = RingWriter(self.path, identity, self.clock, lambda: 0)

    def enter(self, communicator: int, op: int = Op.ALL_REDUCE, **fields: Any) -> Entered:
        return self.ring.enter(Call(communicator=communicator, op=op, **fields))

    def operate(self, communicator: int, op: int = Op.ALL_REDUCE, *, ms: float = 1, **fields: Any) -> None:
        entered = self.enter(communicator, op, **fields)
        self.clock.tick(ms)
        self.ring.leave(entered)

    def reader(self) -> RankReader:
        return RankReader(self.path, self.place[0], self.pid, lambda group: 0 if group.members == WORLD else 1, 0)


def read(folder: Path, *workers: Worker, generation: int = 1) -> NodeReport:
    return CommReader("node0").read(generation, [w.place for w in workers], folder)


def now(worker: Worker) -> RankRecord:
    record, _ = worker.reader().report(worker.clock.ns)
    assert record is not None
    return record
