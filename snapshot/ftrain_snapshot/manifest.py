"""What lies where in a lane's memory, and how anyone can tell that it still does.

A lane's *unit* is its data and the worker's manifest behind it, both padded to 64 bytes. It is cut into *chunks* of
1 MiB from its start; each has its checksum (xxh3), made by the worker while the bytes are in its cache, and kept in
the slot's chunk table. The header page in front of that table is written before the first byte, its state word last
of all (DESIGN 3, commit last).
A ``UnitDescriptor`` is header and checksums; every node of the group keeps it, so that a rebuilt unit can be proved
right. A ``Catalog`` is a node's record of one slot, kept in a file: a restarted daemon re-attaches by it.
"""

from __future__ import annotations

import enum
import struct
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec
import xxhash

from ftrain_snapshot.errors import ChecksumMismatch
from ftrain_snapshot.frames import decode
from ftrain_snapshot.placement import ALIGNMENT_BYTES, round_up
from ftrain_snapshot.words import Count, Name, Rank, SnapshotId

Record = TypeVar("Record", bound=msgspec.Struct)
HEADER_BYTES = 4096
CHUNK_BYTES = 1 << 20
"""Bytes under one checksum, in one parity chunk, and in one message between daemons."""
_MAGIC = b"FTSLOT02"
_STATE = struct.Struct("<I")
_STATE_OFFSET = len(_MAGIC)
_FIELDS = struct.Struct("<qqqiiQQQQqqq")
_FIELDS_OFFSET = 64
"""Past the words that change while a snapshot is being captured (lane.py)."""
_CHECKSUM = struct.Struct("<Q")
Word = Annotated[int, msgspec.Meta(ge=0)]
"""64 bits: a checksum or a digest."""
_HEADER_END = _FIELDS_OFFSET + _FIELDS.size + _CHECKSUM.size


class State(enum.IntEnum):
    """What a slot holds of a lane."""

    EMPTY = 0
    WRITING = 1
    SEALED = 2


NO_SNAPSHOT = SnapshotId(-1, -1, -1)


class Header(msgspec.Struct, frozen=True):
    """What a slot holds of a lane, or is going to."""

    snapshot: SnapshotId
    rank: Rank
    world_size: Rank
    data_bytes: Count
    manifest_bytes: Count
    digest: Word
    """Layout of the replicated state: equal on all ranks, or the snapshot is none."""
    manifest_checksum: Word
    reference: SnapshotId = NO_SNAPSHOT
    """Chunks that lie in the same home as this snapshot's are the same bytes."""

    @property
    def manifest_offset(self) -> int:
        """Where the manifest begins in the unit."""
        return round_up(self.data_bytes, ALIGNMENT_BYTES)

    @property
    def unit_bytes(self) -> int:
        """Data and manifest, padded: what is coded and rebuilt."""
        return unit_bytes(self.data_bytes, self.manifest_bytes)

    @property
    def chunks(self) -> int:
        """How many chunks the unit has."""
        return chunk_count(self.unit_bytes)


def unit_bytes(data_bytes: int, manifest_bytes: int) -> int:
    """Length of the unit that holds so much."""
    return round_up(round_up(data_bytes, ALIGNMENT_BYTES) + manifest_bytes, ALIGNMENT_BYTES)


def chunk_count(length: int) -> int:
    """How many chunks ``length`` bytes make."""
    return -(-length // CHUNK_BYTES)


def chunk_bytes(length: int, chunk: int) -> int:
    """Length of one chunk of ``length`` bytes; 0 past the end."""
    return max(0, min(CHUNK_BYTES, length - chunk * CHUNK_BYTES))


def checksum(data: bytes | bytearray | memoryview) -> int:
    """xxh3: against corruption, not against an enemy (FACTS 3: faster than memory)."""
    return xxhash.xxh3_64_intdigest(data)


def write_state(page: memoryview, state: State) -> None:
    """Set the state word alone."""
    page[_STATE_OFFSET : _STATE_OFFSET + _STATE.size] = _STATE.pack(state)


def write_header(page: memoryview, header: Header) -> None:
    """Write all but the state word, which must not be SEALED meanwhile."""
    s, r = header.snapshot, header.reference
    fields = _FIELDS.pack(
        s.version, s.generation, s.slot, header.rank, header.world_size,
        header.data_bytes, header.manifest_bytes, header.digest, header.manifest_checksum,
        r.version, r.generation, r.slot,
    )  # fmt: skip
    page[: len(_MAGIC)] = _MAGIC
    end = _FIELDS_OFFSET + len(fields)
    page[_FIELDS_OFFSET:end] = fields
    page[end : end + _CHECKSUM.size] = _CHECKSUM.pack(checksum(fields))


def read_header(page: memoryview) -> tuple[State, Header | None]:
    """State, and the header if it is whole. Never raises: another process may be writing it."""
    return _parse_header(bytes(page[:_HEADER_END]))


@lru_cache(maxsize=256)  # asked for each chunk that comes; it changes with each capture
def _parse_header(raw: bytes) -> tuple[State, Header | None]:
    if len(raw) < _HEADER_END or not raw.startswith(_MAGIC):
        return State.EMPTY, None
    word = _STATE.unpack_from(raw, _STATE_OFFSET)[0]
    fields = raw[_FIELDS_OFFSET:-8]
    if word not in (State.WRITING, State.SEALED) or checksum(fields) != _CHECKSUM.unpack(raw[-8:])[0]:
        return State.EMPTY, None
    values = _FIELDS.unpack(fields)
    return State(word), Header(SnapshotId(*values[:3]), *values[3:9], SnapshotId(*values[9:]))  # type: ignore[call-arg]


class UnitDescriptor(msgspec.Struct, frozen=True):
    """One lane's unit: what it holds, and the checksums of its chunks."""

    position: Count
    lane: Count
    header: Header
    sums: bytes
    """u64 each, little endian."""

    @property
    def snapshot(self) -> SnapshotId:
        """Of which snapshot."""
        return self.header.snapshot


class ParityDescriptor(msgspec.Struct, frozen=True):
    """The parity that one node keeps of one lane in one rotation."""

    lane: Count
    rotation: Count
    generator: Name
    """The named matrix it was computed with: any engine can decode it."""
    parity_bytes: Count
    sums: bytes
    """u64 each, little endian, one per stripe."""
    homes: bytes
    """Where each stripe's chunk lies (parities.py); one byte each."""


class Catalog(msgspec.Struct):
    """A node's record of one slot: descriptors of its group's units, and its own parity once it is complete."""

    snapshot: SnapshotId
    lanes: Count
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

    def parity_of(self, lane: int, rotation: int) -> ParityDescriptor | None:
        """What is on record of that parity."""
        return next((p for p in self.parity if p.lane == lane and p.rotation == rotation), None)

    def put_parity(self, parity: ParityDescriptor) -> None:
        """Add or replace what is on record of that parity."""
        kept = [p for p in self.parity if (p.lane, p.rotation) != (parity.lane, parity.rotation)]
        self.parity = [*kept, parity]


def encode_record(record: msgspec.Struct) -> bytes:
    """A struct for a file, behind its checksum."""
    body = msgspec.msgpack.encode(record)
    return _CHECKSUM.pack(checksum(body)) + body


def decode_record(data: bytes, decoder: msgspec.msgpack.Decoder[Record]) -> Record:
    """The way back. Raises ChecksumMismatch if it is not what was written, ProtocolError if that was something else."""
    body = data[_CHECKSUM.size :]
    if data[: _CHECKSUM.size] != _CHECKSUM.pack(checksum(body)):
        raise ChecksumMismatch(f"{len(data)} bytes are not what was written")
    return decode(decoder, body)


def sum_at(sums: bytes, chunk: int) -> int:
    """One checksum out of a packed row of them."""
    return int.from_bytes(sums[8 * chunk : 8 * chunk + 8], "little")
