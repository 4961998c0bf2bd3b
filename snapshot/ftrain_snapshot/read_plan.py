"""Pure: how what a worker wants to read is cut into requests to its daemon.

A request is for one unit, and for as many ranges as an answer can hold: each chunk that it touches is had and checked
once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.messages import RANGES_MAX, Range
from ftrain_snapshot.words import SnapshotId

READ_BYTES_MAX = 4 << 20
"""Longest read, all its ranges together."""
READ_CHUNKS_MAX = 8
"""How many chunks the ranges of one read may touch."""


class Wanted(NamedTuple):
    """Bytes of one unit, and where they go."""

    position: int
    """In the world that captured the snapshot."""
    lane: int
    start: int
    """In the unit; as many bytes from there as ``into`` has room for."""
    into: memoryview
    """Writable, contiguous, of bytes."""


class PlannedRead(msgspec.Struct):
    """One request, and where its answer goes, in order."""

    snapshot: SnapshotId
    position: int
    lane: int
    ranges: list[Range]
    into: list[memoryview]
    length: int = 0
    chunks: int = 0

    def takes(self, start: int, stop: int) -> bool:
        """Whether this range can be had by the same request; then it is added."""
        chunks = self.chunks + touched(start, stop)
        if (
            self.ranges
            and self.ranges[-1][1] <= start
            and (start // CHUNK_BYTES) == (self.ranges[-1][1] - 1) // CHUNK_BYTES
        ):
            chunks -= 1
        if self.length + stop - start > READ_BYTES_MAX or chunks > READ_CHUNKS_MAX or len(self.ranges) >= RANGES_MAX:
            return False
        self.chunks, self.length = chunks, self.length + stop - start
        return True


def touched(start: int, stop: int) -> int:
    """How many chunks a range touches."""
    return -(-stop // CHUNK_BYTES) - start // CHUNK_BYTES if stop > start else 0


def read_requests(snapshot: SnapshotId, wanted: Iterable[Wanted]) -> Iterator[PlannedRead]:
    """All that is wanted, in order, in as few requests as bounds allow."""
    open_: PlannedRead | None = None
    for want in wanted:
        for start, into in _pieces(want):
            stop = start + len(into)
            if open_ is None or (open_.position, open_.lane) != want[:2] or not open_.takes(start, stop):
                if open_ is not None:
                    yield open_
                open_ = PlannedRead(snapshot, want.position, want.lane, [], [])
                open_.takes(start, stop)
            open_.ranges.append((start, stop))
            open_.into.append(into)
    if open_ is not None:
        yield open_


def _pieces(want: Wanted) -> Iterator[tuple[int, memoryview]]:
    """Cut where requests end: at multiples of 4 MiB of the unit, so that no chunk is touched by two of them."""
    start, stop = want.start, want.start + len(want.into)
    while start < stop:
        end = min(stop, (start // READ_BYTES_MAX + 1) * READ_BYTES_MAX)
        yield start, want.into[start - want.start : end - want.start]
        start = end
