"""A writer's bytes: its own node's memory as long as that is sound, the daemon's word otherwise."""

from __future__ import annotations

from pathlib import Path
from random import Random

import durable_job as job
import pytest

from ftrain.durable.source import FoldersSource, LocalUnits, NodeSource
from ftrain_snapshot.errors import ChecksumMismatch, SnapshotError, SnapshotIncomplete
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.messages import UnitInfo
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(4, 1, 2)
DATA = Random(1).randbytes(2 * CHUNK_BYTES + 999)
MANIFEST = Random(2).randbytes(5000)


class FakeDaemon:
    """Has every unit; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.offset = -(-len(DATA) // 64) * 64
        self.unit = DATA.ljust(self.offset, b"\0") + MANIFEST

    def descriptor(self, snapshot: SnapshotId, position: int, lane: int) -> UnitInfo:
        return UnitInfo(position, lane, position, 2, len(DATA), self.offset, len(MANIFEST), len(self.unit))

    def read(self, snapshot: SnapshotId, position: int, lane: int, start: int, stop: int) -> bytes:
        if snapshot != SNAPSHOT:
            raise SnapshotError("gone")
        self.asked.append((position, lane, start, stop))
        return self.unit[start:stop]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    job.seal(tmp_path / "node0", 0, 0, 2, SNAPSHOT, (DATA, b"manifest", 7))
    return tmp_path / "node0"


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, len(DATA)), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (CHUNK_BYTES, 2 * CHUNK_BYTES)]
)
def test_its_own_bytes_are_read_where_they_lie(node: Path, start: int, stop: int) -> None:
    daemon = FakeDaemon()
    source = NodeSource(node, 0, SNAPSHOT, daemon)
    assert source.read(0, 0, start, stop) == DATA[start:stop]
    assert source.manifest(0, 0) == b"manifest"
    assert daemon.asked == []


def test_others_bytes_come_through_the_daemon(node: Path) -> None:
    daemon = FakeDaemon()
    source = NodeSource(node, 0, SNAPSHOT, daemon)
    assert source.read(1, 0, 3, 300) == DATA[3:300]
    assert source.manifest(1, 0) == MANIFEST
    assert [position for position, *_ in daemon.asked] == [1, 1]


def test_a_damaged_chunk_is_never_handed_out(node: Path) -> None:
    job.damage(node, 0, SNAPSHOT.slot, CHUNK_BYTES + 5)
    with pytest.raises(ChecksumMismatch, match="chunk 1"):
        LocalUnits(node, SNAPSHOT).read(0, CHUNK_BYTES + 900, CHUNK_BYTES + 901)
    daemon = FakeDaemon()
    source = NodeSource(node, 0, SNAPSHOT, daemon)
    assert source.read(0, 0, CHUNK_BYTES - 5, CHUNK_BYTES + 50) == DATA[CHUNK_BYTES - 5 : CHUNK_BYTES + 50]
    assert daemon.asked == [(0, 0, CHUNK_BYTES - 5, CHUNK_BYTES + 50)]


def test_a_slot_that_was_taken_by_another_snapshot_is_no_longer_read(node: Path) -> None:
    units = LocalUnits(node, SNAPSHOT)
    assert units.read(0, 0, 10) == DATA[:10]
    job.seal(node, 0, 0, 2, SnapshotId(9, 1, 2), (DATA[::-1], b"other", 7))
    for read in (lambda: units.read(0, 0, 10), lambda: units.manifest(0)):
        with pytest.raises(SnapshotIncomplete):
            read()


def test_a_node_without_memory_has_nothing(tmp_path: Path) -> None:
    with pytest.raises(SnapshotIncomplete, match="lane 3"):
        LocalUnits(tmp_path, SNAPSHOT).manifest(3)


def test_several_folders_are_as_many_nodes(node: Path) -> None:
    source = FoldersSource({0: node, 1: node}, SNAPSHOT)
    assert source.read(1, 0, 7, 9) == DATA[7:9]
    assert source.manifest(1, 0) == b"manifest"
