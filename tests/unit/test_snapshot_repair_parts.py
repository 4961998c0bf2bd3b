"""What a node tells of a state of terabytes still fits into messages."""

from __future__ import annotations

from ftrain_snapshot.manifest import CHUNK_BYTES, Header, UnitDescriptor
from ftrain_snapshot.peer_frames import encode_message
from ftrain_snapshot.repair import in_parts
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.wire import Restoring
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(3, 1, 0)


def unit(lane: int, chunks: int) -> UnitDescriptor:
    header = Header(SNAPSHOT, lane, 1, chunks * CHUNK_BYTES, 0, 0, 0)
    return UnitDescriptor(0, lane, header, bytes(8 * chunks))


def test_units_are_told_in_order_in_as_many_messages_as_it_takes() -> None:
    units = [unit(lane, 80 << 10) for lane in range(8)]  # of 80 GiB each
    parts = in_parts(units)
    assert len(parts) == 8
    assert [u for part in parts for u in part] == units
    for part in parts:
        encode_message(Restoring(SNAPSHOT, (), part, more=True), 0, Traffic.MESSAGE)


def test_few_units_are_told_at_once_and_none_is_told_too() -> None:
    units = [unit(lane, 100) for lane in range(8)]
    assert in_parts(units) == [tuple(units)]
    assert in_parts([]) == [()]
