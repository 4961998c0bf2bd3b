"""The workers of reader.py: one process that writes the rings of a node's made-up workers.

Run as ``reader_writer.py FOLDER RANKS OPERATIONS_PER_SECOND``; prints "ready", and ends when stdin does. Each rank has
three communicators and a channel, steps of ten operations, and at any time one operation that is pending.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

from ftrain.comm.ring import PYTHON, Identity
from ftrain.comm.writer import Call, Entered, RingWriter

_OPERATIONS_A_STEP = 10
_ALL_REDUCE, _ALL_GATHER, _SEND = 1, 6, 18


class Rank:
    """One made-up worker."""

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self._ring = RingWriter(folder / f"comm.{rank}", Identity(PYTHON, os.getpid(), rank, rank, ranks, 1))
        add = self._ring.add_communicator
        pair = (rank - rank % 2, rank - rank % 2 + 1)
        groups = (add("world", tuple(range(ranks))), add("dp", tuple(range(rank % 2, ranks, 2))), add("tp", pair))
        calls = [
            Call(communicator=groups[n % 3], op=_ALL_REDUCE, bytes=4096 << n, elements=1024 << n) for n in range(7)
        ]
        calls += [Call(communicator=groups[1], op=_ALL_GATHER, bytes=64)] * 2
        calls += [Call(communicator=groups[0], op=_SEND, bytes=1024, root=(rank + 1) % ranks, sends=True)]
        self._calls, self._count = calls, 0
        self._pending: Entered | None = None

    def operate(self) -> None:
        """The pending operation ends, the next one begins."""
        if self._pending is not None:
            self._ring.leave(self._pending)
        if self._count and self._count % _OPERATIONS_A_STEP == 0:
            self._ring.mark(self._count // _OPERATIONS_A_STEP)
        self._pending = self._ring.enter(self._calls[self._count % _OPERATIONS_A_STEP])
        self._count += 1


def main() -> None:
    folder, count, rate = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    ranks = [Rank(folder, rank, count) for rank in range(count)]
    for rank in ranks:
        rank.operate()
    print("ready", flush=True)
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        due += 1 / rate
        for rank in ranks:
            rank.operate()


if __name__ == "__main__":
    main()
