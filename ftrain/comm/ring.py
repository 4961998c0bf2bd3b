"""The ring: one file in shared memory per worker, in which its recorder writes and from which its agent reads.

Header page, then tables: communicators, channels, marks of steps, the recent operations of each communicator and
channel, the records of all operations, members. All have a fixed size, told by the header; what does not fit is
counted there. The writer is ``cpp/recorder.cpp``, or the Python fallback; nobody ever waits for anybody.

An operation is written twice, in the same 128 bytes: into the ring of records, in order of entry, where it lasts for
``RECORDS_MAX`` more operations, and among the recent ones of its communicator or channel, where a pending one is never
overwritten. A record's ``id`` is 0 while it is written, and is looked at before and after it is copied, so none is read
torn. Its ``exit`` is one word, swapped in at once: while the operation is pending, its id and bit 63; then the time of
the exit, with bit 62 if it failed. Of an operation that its call only queues on a device, ``reached`` is such a word,
too: until the device has come to it, the rank takes no part in it.

Times are CLOCK_MONOTONIC in nanoseconds: comparable within one host. No torch here: agents read it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = b"FTRNCOMM"
VERSION = 3
NATIVE, PYTHON = 1, 2
"""Kinds of writers."""

COMMUNICATORS_MAX = 128
CHANNELS_MAX = 256
MARKS_MAX = 512
RECORDS_MAX = 4096
RECENT = 8
"""Recent operations kept of each communicator, in slot ``seq % 8``; of a channel four of each direction, sends in slot
``seq % 4``, receives in ``4 + seq % 4``. A pending one keeps its slot: a newer one is then in the records alone."""
PENDING = np.uint64(1 << 63)
FAILED = np.uint64(1 << 62)

NONE = 0xFFFFFFFF
"""Of a record, no channel: it is a collective."""

_FIXED = struct.Struct("<8s13I4xQ")
_LIVE = struct.Struct("<QQQqQQQQQQIIII")
_LIVE_AT = 128
_HEADER_BYTES = 4096
_MEMBERS_LEAST = 4096
_MEMBERS_PER_RANK = 8

RECORD = np.dtype(
    {
        "names": [
            "id", "seq", "enter_ns", "exit", "gap_ns", "bytes", "elements", "step",
            "waited_ns", "communicator", "channel", "op", "dtype", "root", "tag", "thread", "reached",
        ],
        "formats": [*("<u8",) * 7, "<i8", "<u8", "<u4", "<u4", "<u2", "<u2", "<i4", "<i4", "<u4", "<u8"],
        "offsets": [*range(0, 64, 8), 64, 72, 76, 80, 82, 84, 88, 92, 96],
        "itemsize": 128,
    }
)  # fmt: skip
"""One operation. ``id``: 1, 2, ... in order of entry. ``seq``: its number in the communicator's collectives, or in the
channel's sends or receives. ``gap_ns``: how long the process had been outside of all operations when it entered.
``waited_ns``: when somebody began to wait for it, where that can be seen (of works without a future: sends, receives).
``root``: global rank of the root or peer, -1: none. ``step``: the newest mark at its entry, -1: none. ``reached``: 0 on
a processor, where who calls takes part; else when its device had come to it, or that it has not."""

COMMUNICATOR = np.dtype(
    {
        "names": ["name", "description", "size", "members_at", "members_known",
                  "entered", "completed", "failed", "queued"],
        "formats": ["S128", "S64", "<u4", "<u4", "<u4", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [0, 128, 192, 196, 200, 208, 216, 224, 232],
        "itemsize": 256,
    }
)  # fmt: skip
"""One process group; counts are of its collectives. ``completed`` includes the failed; ``queued``: how many of those
entered its device has not reached."""

CHANNEL = np.dtype(
    {
        "names": ["communicator", "peer", "sends_entered", "sends_completed",
                  "receives_entered", "receives_completed", "failed", "sends_queued", "receives_queued"],
        "formats": ["<u4", "<i4", *("<u8",) * 7],
        "offsets": [0, 4, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)  # fmt: skip
"""Point-to-point operations with one peer, a global rank; -1: receives from anybody."""

MARK = np.dtype(
    {
        "names": ["number", "step", "at_ns", "waited_ns", "head", "processor_ns"],
        "formats": ["<u8", "<i8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [0, 8, 16, 24, 32, 40],
        "itemsize": 64,
    }
)
"""The end of a step, with the time spent waiting for operations since the recorder's start, the newest record's id, and
the processor time of the thread that marks, at that moment. ``number`` is 1, 2, ..., and 0 while it is written."""

WAITS = -2
"""The step of a mark that ends none: from then on the rank waits for rank 0 to end this step, too."""
HOLDS = -3
"""From then on it ends this step without waiting for another rank: for memory of its own node, say."""
NO_STEP = frozenset((WAITS, HOLDS))

Table = NDArray[Any]
"""A structured array of one of the types above."""
Words = NDArray[np.int64]


class RingInvalid(ValueError):
    """The file is no ring, or one of another version, or is not ready yet."""


class Identity(NamedTuple):
    """Whose ring it is, as its header says; all but the sizes of the tables."""

    kind: int
    """NATIVE or PYTHON."""
    pid: int
    rank: int
    local_rank: int
    world_size: int
    generation: int


class Live(NamedTuple):
    """The part of the header that changes all the time."""

    head: int
    """Operations entered so far: the newest record's id."""
    marks: int
    """Marks of steps so far."""
    last_exit_ns: int
    """When the process left its last operation; its start before the first."""
    inside: int
    """In how many operations it is now. Works without a future count during their call and their wait."""
    waited_ns: int
    """Time spent waiting for operations, until the last entry, wait or mark: something was under way, and the thread
    that had entered computed nothing. Not counted on CUDA."""
    missed_communicators: int
    """Operations recorded under no communicator, since the table was full; so for the next two."""
    missed_channels: int
    missed_pending: int
    """Operations not among the recent ones, since a pending one has their slot."""
    missed_members: int
    """Communicators whose members did not fit, or could not be found out."""
    failed: int
    """Operations that raised."""
    communicators: int
    channels: int
    members: int
    closed: int
    """1: the worker has ended in good order."""


class Group(NamedTuple):
    """A process group that the worker has used. A later one of the same name and members has taken its place."""

    name: str
    description: str
    members: tuple[int, ...] | None
    """Global ranks in the group's order; None: unknown."""


class Layout(NamedTuple):
    """Where the tables are, in bytes; derived from their sizes."""

    communicators: int
    channels: int
    marks: int
    recent: int
    channels_recent: int
    records: int
    members: int
    end: int

    @classmethod
    def of(cls, members_max: int) -> Layout:
        """The layout of a ring with room for this many members."""
        sizes = (
            _HEADER_BYTES,
            COMMUNICATORS_MAX * COMMUNICATOR.itemsize,
            CHANNELS_MAX * CHANNEL.itemsize,
            MARKS_MAX * MARK.itemsize,
            COMMUNICATORS_MAX * RECENT * RECORD.itemsize,
            CHANNELS_MAX * RECENT * RECORD.itemsize,
            RECORDS_MAX * RECORD.itemsize,
            members_max * 4,
        )
        return cls(*(sum(sizes[: n + 1]) for n in range(len(sizes))))


def ring_path(node_folder: str | Path, local_rank: int) -> Path:
    """Where the ring of a node's worker is."""
    return Path(node_folder) / f"comm.{local_rank}"


def create_ring(path: Path, identity: Identity) -> int:
    """Make a fresh ring and return its descriptor, open for reading and writing; an old one is unlinked.

    Raises:
        OSError: no room for it (all of its memory is reserved here, so that nobody gets SIGBUS later), or no folder.
    """
    members_max = max(_MEMBERS_LEAST, _MEMBERS_PER_RANK * identity.world_size)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, Layout.of(members_max).end)
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        sizes = (COMMUNICATORS_MAX, CHANNELS_MAX, MARKS_MAX, RECENT, RECORDS_MAX, members_max)
        live = (0, 0, now, *(0,) * 11)
        os.pwrite(fd, _LIVE.pack(*live), _LIVE_AT)
        os.pwrite(fd, _FIXED.pack(MAGIC, VERSION, *identity, *sizes, now), 0)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


class RingReader:
    """A ring, read from another process or from the writer's own. Never writes, never waits.

    Raises:
        OSError: there is no such file.
        RingInvalid: it is no ring, or not ready yet.
    """

    def __init__(self, path: str | Path) -> None:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < _HEADER_BYTES:
                raise RingInvalid(f"{path}: not a ring, or not ready yet")
            self.memory = self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        magic, version, *fields, self.started_ns = _FIXED.unpack_from(self._map)
        self.identity = Identity(*fields[:6])
        sizes, members_max = tuple(fields[6:11]), fields[11]
        self.layout = layout = Layout.of(members_max)
        if (magic, version) != (MAGIC, VERSION) or len(self._map) < layout.end:
            raise RingInvalid(f"{path}: not a ring of version {VERSION}")
        if sizes != (COMMUNICATORS_MAX, CHANNELS_MAX, MARKS_MAX, RECENT, RECORDS_MAX):
            raise RingInvalid(f"{path}: tables of other sizes: {sizes}")
        self._communicators = self._words(layout.communicators, COMMUNICATOR, COMMUNICATORS_MAX)
        self._channels = self._words(layout.channels, CHANNEL, CHANNELS_MAX)
        self._marks = self._words(layout.marks, MARK, MARKS_MAX)
        self._recent = self._words(layout.recent, RECORD, COMMUNICATORS_MAX, RECENT)
        self._channels_recent = self._words(layout.channels_recent, RECORD, CHANNELS_MAX, RECENT)
        self._records = self._words(layout.records, RECORD, RECORDS_MAX)
        self._members = np.ndarray((members_max,), "<u4", self._map, layout.members)
        self._groups: list[Group] = []

    def _words(self, offset: int, dtype: np.dtype[Any], *shape: int) -> Words:
        """A table as plain words: structured arrays are copied field by field, a hundred times slower."""
        return np.ndarray((*shape, dtype.itemsize // 8), "<i8", self._map, offset)

    def close(self) -> None:
        """Let go of the mapping; arrays that were returned stay valid, they are copies."""
        del self._communicators, self._channels, self._marks, self._recent, self._channels_recent
        del self._records, self._members
        self._map.close()

    def live(self) -> Live:
        """The header's counters."""
        # A copy first: struct reads from the map byte by byte, and would take half of a word from before a change.
        return Live._make(_LIVE.unpack(self._map[_LIVE_AT : _LIVE_AT + _LIVE.size]))

    def groups(self, count: int) -> list[Group]:
        """The first ``count`` process groups (`Live.communicators`), by index; an entry never changes."""
        for entry in self._communicators[len(self._groups) : count].view(COMMUNICATOR)[..., 0]:
            at, size = int(entry["members_at"]), int(entry["size"])
            members = tuple(self._members[at : at + size].tolist()) if entry["members_known"] else None
            name, description = (entry[key].decode(errors="replace") for key in ("name", "description"))
            self._groups.append(Group(name, description, members))
        return self._groups

    def collectives(self, count: int) -> tuple[Table, Table]:
        """Of the first ``count`` communicators: their entries, and their recent operations, ``[count, RECENT]``.

        An operation with ``id`` 0 is none: its slot is empty, or was being written.
        """
        return self._communicators[:count].copy().view(COMMUNICATOR)[..., 0], _untorn(self._recent[:count])

    def channels(self, count: int) -> tuple[Table, Table]:
        """The same for the first ``count`` channels (`Live.channels`)."""
        return self._channels[:count].copy().view(CHANNEL)[..., 0], _untorn(self._channels_recent[:count])

    def records(self, after: int, head: int) -> Table:
        """The records with ids from ``after + 1`` to ``head`` (`Live.head`), in order, up to one that is being written.

        Those overwritten are left out. A pending one changes later: ask again, from the oldest pending one on.
        """
        return _between(self._records, after, head).view(RECORD)[..., 0]

    def marks(self, after: int, count: int) -> Table:
        """The same of marks, by number, up to `Live.marks`."""
        return _between(self._marks, after, count).view(MARK)[..., 0]


def is_pending(records: Table) -> NDArray[np.bool_]:
    """Which of these records are of operations that have not been left."""
    return np.asarray((records["id"] != 0) & (records["exit"] & PENDING != 0))


def is_failed(records: Table) -> NDArray[np.bool_]:
    """Which of these records are of operations that raised, or whose work did."""
    return np.asarray((records["exit"] & (PENDING | FAILED)) == FAILED)


def exit_ns(records: Table) -> NDArray[np.uint64]:
    """When these operations were left; of a pending one meaningless."""
    return np.asarray(records["exit"] & ~FAILED, np.uint64)


def _untorn(words: Words) -> Table:
    """A copy of records; one that is written in the meantime gets the id 0."""
    ids = words[..., 0]
    before = ids.copy()
    copied = words.copy()
    copied[..., 0] *= ids == before
    return copied.view(RECORD)[..., 0]


def _between(words: Words, after: int, newest: int) -> Words:
    """Copies of the entries numbered ``after + 1`` to ``newest`` of a ring in which entry n has slot ``n % size``."""
    numbers = np.arange(max(after, newest - len(words)) + 1, newest + 1)
    slots = numbers % len(words)
    before = words[slots, 0]
    copied = words[slots]
    untorn = (before == numbers) & (words[slots, 0] == numbers)
    if untorn.all():
        return copied
    unwritten = before < numbers
    end = int(unwritten.argmax()) if unwritten.any() else len(numbers)
    kept: Words = copied[:end][untorn[:end]]
    return kept
