"""What lies where in a region, and how anyone can tell that it still does.

A region is a header page, the data, and the worker's manifest, padded to 64 bytes: together the *unit* that is
checksummed, coded and rebuilt. The header is written last, its state word last of all (DESIGN 3, commit last).
A ``UnitDescriptor`` holds the unit's checksums, one xxh3 per MiB of each segment; every node of the group keeps
it, so that a rebuilt unit can be proved right. A ``Catalog`` is a node's record of one slot, kept in a file
beside it: a restarted daemon re-attaches by it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

import msgspec
import xxhash

from ftrain_snapshot.messages import SnapshotId
from ftrain_snapshot.placement import ALIGNMENT_BYTES, round_up, segment_spans

HEADER_BYTES = 4096
CHUNK_BYTES = 1 << 20
"""Bytes under one checksum, and in one message between daemons."""
_MAGIC = b"FTSLOT01"
_STATE = struct.Struct("<I")
STATE_OFFSET = len(_MAGIC)
_FIELDS = struct.Struct("<qqqiiQQQQ")
_FIELDS_OFFSET = STATE_OFFSET + 8
_CHECKSUM = struct.Struct("<Q")


class State(enum.IntEnum):
    """What a region holds."""

    EMPTY = 0
    WRITING = 1
    SEALED = 2


class Header(msgspec.Struct, frozen=True):
    """The first page of a sealed region."""

    snapshot: SnapshotId
    rank: int
    world_size: int
    data_bytes: int
    manifest_bytes: int
    digest: int
    """Layout of the replicated state: equal on all ranks, or the snapshot is none."""
    manifest_checksum: int

    @property
    def manifest_offset(self) -> int:
        """Where the manifest begins, counted from the start of the data."""
        return round_up(self.data_bytes, ALIGNMENT_BYTES)

    @property
    def unit_bytes(self) -> int:
        """Header, data and manifest, padded: what is coded and rebuilt."""
        return HEADER_BYTES + round_up(self.manifest_offset + self.manifest_bytes, ALIGNMENT_BYTES)


def checksum(data: bytes | bytearray | memoryview) -> int:
    """xxh3: against corruption, not against an enemy (FACTS 3: faster than memory)."""
    return xxhash.xxh3_64_intdigest(data)


def write_state(page: memoryview, state: State) -> None:
    """Set the state word alone."""
    page[STATE_OFFSET : STATE_OFFSET + _STATE.size] = _STATE.pack(state)


def write_header(page: memoryview, header: Header) -> None:
    """Write all but the state word, which must not be SEALED meanwhile."""
    s = header.snapshot
    fields = _FIELDS.pack(
        s.version, s.generation, s.slot, header.rank, header.world_size,
        header.data_bytes, header.manifest_bytes, header.digest, header.manifest_checksum,
    )  # fmt: skip
    page[: len(_MAGIC)] = _MAGIC
    end = _FIELDS_OFFSET + len(fields)
    page[_FIELDS_OFFSET:end] = fields
    page[end : end + _CHECKSUM.size] = _CHECKSUM.pack(checksum(fields))


def read_header(page: memoryview) -> tuple[State, Header | None]:
    """State, and the header if it is whole. Never raises: another process may be writing it."""
    raw = bytes(page[: _FIELDS_OFFSET + _FIELDS.size + _CHECKSUM.size])
    if not raw.startswith(_MAGIC):
        return State.EMPTY, None
    word = _STATE.unpack_from(raw, STATE_OFFSET)[0]
    fields = raw[_FIELDS_OFFSET:-8]
    if word not in (State.WRITING, State.SEALED) or checksum(fields) != _CHECKSUM.unpack(raw[-8:])[0]:
        return State.EMPTY, None
    version, generation, slot, *rest = _FIELDS.unpack(fields)
    return State(word), Header(SnapshotId(version, generation, slot), *rest)


class UnitDescriptor(msgspec.Struct, frozen=True):
    """Length and checksums of one lane's unit."""

    snapshot: SnapshotId
    position: int
    lane: int
    unit_bytes: int
    sums: tuple[bytes, ...]
    """For each segment the checksums of its chunks (u64, little endian)."""


class ParityDescriptor(msgspec.Struct, frozen=True):
    """Length and checksums of one lane's parity."""

    lane: int
    parity_bytes: int
    sums: bytes


class Catalog(msgspec.Struct):
    """A node's record of one slot: descriptors of its group's units, and its own parity once it is complete."""

    snapshot: SnapshotId
    lanes: int
    units: list[UnitDescriptor]
    parity: list[ParityDescriptor]
    dropped: bool = False
    """The job gave this snapshot up: it must not be restored, even where it looks whole."""

    def unit(self, position: int, lane: int) -> UnitDescriptor | None:
        """What is known of that unit."""
        return next((u for u in self.units if u.position == position and u.lane == lane), None)

    def put(self, unit: UnitDescriptor) -> None:
        """Add or replace what is known of a unit."""
        self.units = [u for u in self.units if (u.position, u.lane) != (unit.position, unit.lane)] + [unit]


def sum_at(sums: bytes, chunk: int) -> int:
    """One checksum out of a packed row of them."""
    return int.from_bytes(sums[8 * chunk : 8 * chunk + 8], "little")


def chunk_spans(length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of each chunk of ``length`` bytes."""
    for offset in range(0, length, CHUNK_BYTES):
        yield offset, min(CHUNK_BYTES, length - offset)


def checksums(data: memoryview) -> bytes:
    """Packed checksums of the chunks of ``data``."""
    return b"".join(_CHECKSUM.pack(checksum(data[o : o + n])) for o, n in chunk_spans(len(data)))


def describe(snapshot: SnapshotId, position: int, lane: int, unit: memoryview, segments: int) -> UnitDescriptor:
    """Checksums of a whole unit that is divided into ``segments``."""
    spans = segment_spans(len(unit), segments)
    return UnitDescriptor(snapshot, position, lane, len(unit), tuple(checksums(unit[o : o + n]) for o, n in spans))
