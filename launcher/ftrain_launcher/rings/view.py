"""A ring's tables as plain numbers, for one who looks ten times a second.

`ftrain.comm.ring` gives arrays, which cost about a microsecond for each operation on them, whatever their size; here
a few records are unpacked at a time (60 microseconds a look become 10). Whatever was read twice and was the same both
times is not torn: an id is 0 while its record is written, and never comes back.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from ftrain.comm.ring import (
    CHANNEL,
    COMMUNICATOR,
    MARK,
    MARKS_MAX,
    RECENT,
    RECORD,
    RECORDS_MAX,
    Group,
    Live,
    RingReader,
)

PENDING = 1 << 63
FAILED = 1 << 62
_RECORD = struct.Struct("<7QqQIIHHiiIQ24x")
_DONE = struct.Struct("<Q8xQQQQ24xIIH2xi8xQ24x")
"""The same record, without what only one that is pending is asked for."""
_MARK = struct.Struct("<QqQQQQ16x")
_COMMUNICATOR = struct.Struct("<208xQQ8xQ16x")
_CHANNEL = struct.Struct("<IiQQQQ8xQQ")


class Record(NamedTuple):
    """One operation; `ftrain.comm.ring.RECORD` says what the fields mean."""

    id: int
    seq: int
    enter_ns: int
    exit: int
    gap_ns: int
    bytes: int
    elements: int
    step: int
    waited_ns: int
    communicator: int
    channel: int
    op: int
    dtype: int
    root: int
    tag: int
    thread: int
    reached: int

    @property
    def is_queued(self) -> bool:
        """Its device has not come to it: the rank has called it, and takes no part in it."""
        return self.reached >= PENDING

    @property
    def begun_ns(self) -> int:
        """Since when the rank takes part."""
        return begun_ns(self.enter_ns, self.reached)


def begun_ns(enter_ns: int, reached: int) -> int:
    """Since when a rank takes part in an operation that it entered then; of one that is queued, since when it is."""
    return reached if 0 < reached < PENDING else enter_ns


class Mark(NamedTuple):
    """The end of a step; `ftrain.comm.ring.MARK` says what the fields mean."""

    number: int
    step: int
    at_ns: int
    waited_ns: int
    head: int
    processor_ns: int


class ChannelCounts(NamedTuple):
    """What went to and came from one peer of a communicator."""

    communicator: int
    peer: int
    sends_entered: int
    sends_completed: int
    receives_entered: int
    receives_completed: int
    sends_queued: int
    receives_queued: int

    @property
    def pending(self) -> int:
        """How many have not ended, of both directions."""
        return self.sends_entered - self.sends_completed + self.receives_entered - self.receives_completed

    @property
    def taken(self) -> tuple[int, int, int, int, int]:
        """The peer and the counts, of what the rank takes part in."""
        sends, receives = self.sends_entered - self.sends_queued, self.receives_entered - self.receives_queued
        return self.peer, sends, self.sends_completed, receives, self.receives_completed


class RingView:
    """One ring. Raises OSError, RingInvalid as `RingReader` does."""

    def __init__(self, path: Path) -> None:
        self._ring = RingReader(path)
        self._memory, self._layout = self._ring.memory, self._ring.layout
        self.identity = self._ring.identity
        self.started_ns = self._ring.started_ns

    def close(self) -> None:
        """Let go of the memory."""
        self._ring.close()

    def live(self) -> Live:
        """The header's counters."""
        return self._ring.live()

    def groups(self, count: int) -> list[Group]:
        """The process groups, by index."""
        return self._ring.groups(count)

    def communicators(self, count: int) -> list[tuple[int, int, int]]:
        """Of the first ``count``: collectives entered, completed, and entered but not reached by its device."""
        at = self._layout.communicators
        return list(_COMMUNICATOR.iter_unpack(self._memory[at : at + count * COMMUNICATOR.itemsize]))

    def channels(self, count: int) -> list[ChannelCounts]:
        """The first ``count``."""
        at = self._layout.channels
        found = _CHANNEL.iter_unpack(self._memory[at : at + count * CHANNEL.itemsize])
        return [ChannelCounts._make(fields) for fields in found]

    def newest(self, communicator: int, seq: int) -> Record | None:
        """What is in the place of a communicator's collective ``seq``: it, or an older one that is pending."""
        at = self._layout.recent + (communicator * RECENT + seq % RECENT) * RECORD.itemsize
        found = self._stable(_RECORD, at, 1)
        return Record._make(found[0]) if found and found[0][0] else None

    def recent(self, communicator: int) -> list[Record]:
        """The newest and the pending collectives of a communicator, in the order of their entry."""
        return self._recent_at(self._layout.recent + communicator * RECENT * RECORD.itemsize)

    def channel_recent(self, channel: int) -> list[Record]:
        """The newest and the pending operations of a channel, in the order of their entry."""
        return self._recent_at(self._layout.channels_recent + channel * RECENT * RECORD.itemsize)

    def _recent_at(self, at: int) -> list[Record]:
        return [Record._make(fields) for fields in sorted(self._stable(_RECORD, at, RECENT)) if fields[0]]

    def records(self, after: int, head: int) -> list[tuple[int, ...]]:
        """The records with ids from ``after + 1`` to ``head``, in order; some may be missing.

        Of each: id, entry, exit, gap, bytes, communicator, channel, op, root and when it was reached.
        """
        return self._numbered(_DONE, self._layout.records, RECORDS_MAX, after, head)

    def mark(self, number: int) -> Mark | None:
        """The mark with this number; None: there is none yet, or it is being written."""
        found = self._stable(_MARK, self._layout.marks + number % MARKS_MAX * MARK.itemsize, 1)
        return Mark._make(found[0]) if found and found[0][0] == number and number else None

    def marks(self, after: int, newest: int) -> list[Mark]:
        """The marks with numbers from ``after + 1`` to ``newest``, in order; some may be missing."""
        found = self._numbered(_MARK, self._layout.marks, MARKS_MAX, after, newest)
        return [Mark._make(fields) for fields in found]

    def _numbered(self, shape: struct.Struct, at: int, size: int, after: int, newest: int) -> list[tuple[int, ...]]:
        """Entry n of such a table has slot n % size, and its number first."""
        first = max(after, newest - size) + 1
        if first > newest:
            return []
        start, count = first % size, newest - first + 1
        found = self._stable(shape, at + start * shape.size, min(count, size - start))
        if count > size - start:
            found += self._stable(shape, at, count - (size - start))
        return [fields for fields in found if first <= fields[0] <= newest]

    def _stable(self, shape: struct.Struct, at: int, count: int) -> list[tuple[int, ...]]:
        end = at + count * shape.size
        before, after = self._memory[at:end], self._memory[at:end]
        if before == after:
            return list(shape.iter_unpack(after))
        both = zip(shape.iter_unpack(before), shape.iter_unpack(after), strict=True)
        return [old for old, new in both if old == new]


assert (_RECORD.size, _MARK.size, _COMMUNICATOR.size, _CHANNEL.size) == (
    RECORD.itemsize,
    MARK.itemsize,
    COMMUNICATOR.itemsize,
    CHANNEL.itemsize,
)
