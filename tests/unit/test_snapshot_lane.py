"""Lanes: what a reader sees at every point of a writer's life."""

from random import Random

import pytest

from ftrain_snapshot import arena
from ftrain_snapshot.arena import HOMES, SLOTS
from ftrain_snapshot.errors import ChecksumMismatch, SnapshotIncomplete
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.manifest import CHUNK_BYTES, Header, State, checksum
from ftrain_snapshot.words import SnapshotId

ID = SnapshotId(5, 1, 0)
MANIFEST = b"manifest"


def allocate(folder, unit_bytes: int) -> None:
    size = arena.home_bytes(unit_bytes)
    for index in range(SLOTS):
        while arena.extend(arena.home_path(folder, index, 0), size) < size:
            pass
        arena.extend(arena.table_path(folder, index, 0), arena.table_bytes(size))


@pytest.fixture
def lane(tmp_path):
    allocate(tmp_path, 3 * CHUNK_BYTES)
    mapped = Lane(tmp_path, 0)
    yield mapped
    mapped.close()


def header(data_bytes: int, snapshot: SnapshotId = ID) -> Header:
    return Header(snapshot, 0, 1, data_bytes, len(MANIFEST), 1, checksum(MANIFEST))


def write(region: Region, snapshot: SnapshotId, data: bytes) -> None:
    made = header(len(data), snapshot)
    region.begin(made)
    for chunk in range(made.chunks):
        region.place(chunk)
    region.put(0, data)
    region.put(made.manifest_offset, MANIFEST)
    for chunk in range(made.chunks):
        region.record(chunk, checksum(region.chunk(chunk, min(CHUNK_BYTES, made.unit_bytes - chunk * CHUNK_BYTES))))
    region.publish(made.chunks, made.unit_bytes)
    region.seal()


def content(region: Region, snapshot: SnapshotId) -> bytes:
    found, manifest = region.read(snapshot)
    assert manifest == MANIFEST
    return b"".join(region.spans(0, found.data_bytes))


def test_a_sealed_region_gives_back_data_and_manifest(lane):
    data = Random(1).randbytes(2 * CHUNK_BYTES + 999)
    write(lane.regions[0], ID, data)
    assert content(lane.regions[0], ID) == data


def test_nothing_is_there_before_the_seal_or_of_another_snapshot(lane):
    region, newer = lane.regions[0], SnapshotId(8, 1, 0)
    with pytest.raises(SnapshotIncomplete):
        region.read(ID)
    write(region, ID, b"old")
    region.begin(header(3, newer))
    assert region.published == region.copied_bytes == 0
    for snapshot in (ID, newer):
        with pytest.raises(SnapshotIncomplete):
            region.read(snapshot)
    assert region.header()[0] is State.WRITING


def test_a_damaged_manifest_is_not_handed_out(lane):
    region = lane.regions[0]
    write(region, ID, b"x" * 64)
    region.chunk(0)[64] ^= 1
    with pytest.raises(ChecksumMismatch):
        region.read(ID)


def test_what_does_not_fit_or_is_not_whole_is_not_sealed(lane):
    region = lane.regions[0]
    with pytest.raises(ValueError, match="whole"):
        region.seal()
    with pytest.raises(ValueError, match="fit"):
        region.begin(header(lane.capacity))
    region.begin(header(2 * CHUNK_BYTES))
    region.publish(2, 0)
    with pytest.raises(ValueError, match="whole"):
        region.seal()
    assert region.header()[0] is State.WRITING


def test_new_bytes_never_touch_what_the_two_other_slots_refer_to(lane):
    random, states, version = Random(3), {}, 0
    for version in range(40):
        region = lane.regions[version % SLOTS]
        last = lane.regions[(version - 1) % SLOTS]
        state = list(states.get((version - 1) % SLOTS, [b""] * 3))
        region.begin(header(3 * CHUNK_BYTES - 64, SnapshotId(version, 1, region.slot)))
        for chunk in range(3):
            if version and random.random() < 0.5:
                region.keep(chunk, last)
                continue
            state[chunk] = random.randbytes(64)
            region.place(chunk)
            region.put(chunk * CHUNK_BYTES, state[chunk])
            region.record(chunk, version)
        states[region.slot] = state
        for slot, expected in states.items():
            assert [bytes(lane.regions[slot].chunk(chunk, 64)) for chunk in range(3)] == expected
            assert all(0 <= lane.regions[slot].home(chunk) < HOMES for chunk in range(3))


def test_a_kept_chunk_is_the_reference_s_with_its_checksum(lane):
    write(lane.regions[0], ID, b"x" * 100)
    lane.regions[1].begin(header(100, SnapshotId(6, 1, 1)))
    lane.regions[1].keep(0, lane.regions[0])
    assert lane.regions[1].home(0) == lane.regions[0].home(0)
    assert lane.regions[1].sums(1) == lane.regions[0].sums(1)


def test_a_lane_grows_in_place_and_keeps_its_bytes(lane, tmp_path):
    write(lane.regions[0], ID, b"kept")
    old = lane.regions[0].chunk(0, 4)
    allocate(tmp_path, 9 * CHUNK_BYTES)
    assert lane.capacity < 9 * CHUNK_BYTES
    assert {mapping.path.name for mapping, _ in lane.refresh()} >= {f"slot{home}.lane0" for home in range(HOMES)}
    assert lane.capacity >= 9 * CHUNK_BYTES
    assert content(lane.regions[0], ID) == bytes(old) == b"kept"
    old.release()


def test_an_outlined_home_is_mapped_written_and_filled_with_its_bytes_kept(tmp_path):
    size = arena.home_bytes(3 * CHUNK_BYTES)
    for index in range(SLOTS):
        arena.outline(arena.home_path(tmp_path, index, 0), size)
        arena.extend(arena.table_path(tmp_path, index, 0), arena.table_bytes(size))
    assert all(arena.allocated(arena.home_path(tmp_path, index, 0)) == 0 for index in range(HOMES))
    lane = Lane(tmp_path, 0)
    assert lane.capacity >= 3 * CHUNK_BYTES
    lane.homes[0].write(CHUNK_BYTES, memoryview(b"written"))
    write(lane.regions[1], ID, b"captured")
    for home in range(HOMES):
        for _ in arena.fill(lane.homes[home].path):
            pass
        assert arena.allocated(lane.homes[home].path) == size
    assert bytes(lane.homes[0].view[CHUNK_BYTES : CHUNK_BYTES + 7]) == b"written"
    assert content(lane.regions[1], ID) == b"captured"
    lane.close()
