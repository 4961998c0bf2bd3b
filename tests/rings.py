"""Rings made by hand: the bytes that a recorder would have written."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ftrain.comm import ring
from ftrain.comm.ring import COMMUNICATOR, MARK, RECORD, Identity, Layout


class MadeRing:
    """One worker's. Times are nanoseconds; ``left``: 0 for an operation that is pending."""

    def __init__(
        self, folder: Path, rank: int, *, local_rank: int = 0, world_size: int = 2, generation: int = 1
    ) -> None:
        identity = Identity(ring.NATIVE, 4000 + rank, rank, local_rank, world_size, generation)
        fd = ring.create_ring(ring.ring_path(folder, local_rank), identity)
        self._map = mmap.mmap(fd, 0)
        os.close(fd)
        self._layout = Layout.of(max(ring._MEMBERS_LEAST, ring._MEMBERS_PER_RANK * world_size))
        self._head = self._marks = self._communicators = self._members = 0

    def __enter__(self) -> MadeRing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._map.close()

    def group(self, name: str, *members: int, description: str = "undefined") -> int:
        """A process group; its index."""
        at = self._layout.members + 4 * self._members
        self._map[at : at + 4 * len(members)] = np.array(members, "<u4").tobytes()
        entry = {
            "name": name.encode(),
            "description": description.encode(),
            "size": len(members),
            "members_at": self._members,
            "members_known": 1,
        }
        self._write(COMMUNICATOR, self._layout.communicators, self._communicators, entry)
        self._members += len(members)
        self._communicators += 1
        self._publish()
        return self._communicators - 1

    def record(
        self, communicator: int, op: int, seq: int, entered: int, left: int, *, root: int = -1, failed: bool = False
    ) -> None:
        """One operation of 64 bytes."""
        self._head += 1
        exit = self._head | int(ring.PENDING) if not left else left | (int(ring.FAILED) if failed else 0)
        entry = {"id": self._head, "seq": seq, "enter_ns": entered, "exit": exit, "bytes": 64, "root": root, "op": op}
        slot = self._head % ring.RECORDS_MAX
        self._write(RECORD, self._layout.records, slot, {**entry, "communicator": communicator, "channel": ring.NONE})
        self._publish()

    def mark(self, step: int, at: int) -> None:
        """The end of a step."""
        self._marks += 1
        entry = {"number": self._marks, "step": step, "at_ns": at, "head": self._head}
        self._write(MARK, self._layout.marks, self._marks % ring.MARKS_MAX, entry)
        self._publish()

    def _write(self, dtype: np.dtype[Any], table: int, slot: int, entry: dict[str, object]) -> None:
        row = np.zeros(1, dtype)
        for name, value in entry.items():
            row[name] = value
        at = table + slot * dtype.itemsize
        self._map[at : at + dtype.itemsize] = row.tobytes()

    def _publish(self) -> None:
        live = (self._head, self._marks, 0, *(0,) * 7, self._communicators, 0, self._members, 0)
        ring._LIVE.pack_into(self._map, ring._LIVE_AT, *live)
