"""Regions and the control page: what a reader sees at every point of a writer's life."""

import pytest

from ftrain_snapshot import arena
from ftrain_snapshot.arena import ControlPage, Region
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, SnapshotIncomplete
from ftrain_snapshot.manifest import State
from ftrain_snapshot.messages import SnapshotId

ID = SnapshotId(5, 1, 0)


@pytest.fixture
def region(tmp_path):
    arena.extend(arena.region_path(tmp_path, 0, 0), arena.file_bytes(10_000))
    region = Region.open(tmp_path, 0, 0)
    yield region
    region.close()


def write(region: Region, snapshot: SnapshotId, data: bytes, manifest: bytes = b"m") -> None:
    region.begin(snapshot, 0, 1)
    region.data[: len(data)] = data
    region.seal(len(data), manifest, 1)


def test_a_sealed_region_gives_back_data_and_manifest(region):
    write(region, ID, b"x" * 999, b"manifest")
    data, manifest = region.read(ID)
    assert bytes(data) == b"x" * 999
    assert manifest == b"manifest"
    data.release()


def test_nothing_is_there_before_the_seal_or_of_another_snapshot(region):
    with pytest.raises(SnapshotIncomplete):
        region.read(ID)
    write(region, ID, b"old")
    region.begin(SnapshotId(8, 1, 0), 0, 1)
    for snapshot in (ID, SnapshotId(8, 1, 0)):
        with pytest.raises(SnapshotIncomplete):
            region.read(snapshot)
    assert region.header()[0] is State.WRITING


def test_a_damaged_manifest_is_not_handed_out(region):
    write(region, ID, b"x" * 64, b"manifest")
    region.data[64] ^= 1
    with pytest.raises(ChecksumMismatch):
        region.read(ID)


def test_what_does_not_fit_or_was_not_begun_is_not_sealed(region):
    with pytest.raises(ValueError, match="begun"):
        region.seal(1, b"", 0)
    region.begin(ID, 0, 1)
    with pytest.raises(ValueError, match="fit"):
        region.seal(region.capacity, b"x", 0)
    assert region.header()[0] is State.WRITING


def test_a_region_grows_in_place_and_keeps_its_bytes(region, tmp_path):
    write(region, ID, b"kept")
    old = region.data
    arena.extend(arena.region_path(tmp_path, 0, 0), arena.file_bytes(100_000))
    assert region.capacity < 100_000
    region.refresh()
    assert region.capacity >= 100_000
    data, _ = region.read(ID)
    assert bytes(data) == bytes(old[:4]) == b"kept"
    data.release()
    old.release()


def test_files_never_shrink(tmp_path):
    path = arena.region_path(tmp_path, 0, 0)
    assert arena.extend(path, 8192) == 8192
    assert arena.extend(path, 4096) == 8192


def test_too_little_space_is_said_with_both_numbers_and_nothing_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "TOUCH_BYTES", 1 << 60)
    path = arena.region_path(tmp_path, 0, 0)
    with pytest.raises(ArenaTooSmall, match="available") as caught:
        arena.extend(path, 1 << 60)
    assert path.stat().st_size == 0
    assert caught.value.needed_bytes > caught.value.available_bytes


def test_what_a_node_needs_counts_all_lanes_all_slots_and_their_parity():
    assert arena.required({0: 8192, 1: 4096}, 3, 1) == 3 * (8192 + 4096 + 4096 + 4096)
    assert arena.required({0: 8192}, 1, 0) == 3 * 8192


def test_the_gate_word_opens_closes_and_remembers_what_was_given_out(tmp_path):
    page = ControlPage(tmp_path, create=True)
    other = ControlPage(tmp_path)
    assert other.gate() == (0, -1)
    page.open_gate(1, 2, floor=7)
    assert other.gate() == (1, 2)
    page.close_gate()
    assert other.gate() == (1, -1)
    assert other.pending() == (1, 2, 7)
    page.close_gate(spent=True)
    assert other.pending()[1] == -1
    page.close()
    again = ControlPage(tmp_path, create=True)
    assert again.gate() == (1, -1)
    again.close()
    other.close()


def test_progress_of_a_lane_is_its_own(tmp_path):
    page = ControlPage(tmp_path, create=True)
    assert page.progress(0)[0] == page.progress(47)[0] == -1
    page.set_progress(3, 12)
    step, when = page.progress(3)
    assert step == 12
    assert when > 1e9
    assert page.progress(2)[0] == page.progress(4)[0] == -1
    page.close()
