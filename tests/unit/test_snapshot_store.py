"""The store: parity that moves between homes, damage that is noted chunk by chunk, and what a restart finds."""

import errno
import os
from pathlib import Path
from random import Random

import pytest
from snapshot_nodes import capture, content, read

from ftrain_snapshot import arena
from ftrain_snapshot.damage import damages
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.lanes import Lanes
from ftrain_snapshot.manifest import CHUNK_BYTES, UnitDescriptor, checksum, chunk_bytes
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.store import Store
from ftrain_snapshot.words import SnapshotId

NODES = 4
SIZE = 2 * CHUNK_BYTES + 1000
IDS = [SnapshotId(version, 1, version % 3) for version in range(6)]
PEERS = tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(NODES))


def run(work):
    """Do long work at once; its result."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def made(folder: Path, position: int = 1, *, unit_bytes: int = SIZE) -> Store:
    folder.mkdir(exist_ok=True)
    store = Store(folder)
    store.enter(Membership(1, position, 1, 1, PEERS))
    run(store.reserve(0, unit_bytes))
    return store


def again(store: Store) -> Store:
    """What a daemon finds that is started after this one."""
    found = Store(store.node_dir)
    run(found.attach())
    return found


def write(store: Store, snapshot: SnapshotId, data: bytes) -> None:
    """A worker captures it, and its description is on record."""
    with capture(store.node_dir, 0, snapshot, data, b"m") as captured:
        captured.finish()
    catalog, unit = store.begin(snapshot, 1), store.describe(0, snapshot)
    assert catalog is not None
    assert unit is not None
    catalog.put(unit)
    store.save(catalog)


def put_parity(store: Store, snapshot: SnapshotId, stripes: list[bytes | None], reference: SnapshotId | None) -> None:
    """Parity of rotation 1, the one that position 1 keeps; None: as in the reference."""
    catalog = store.begin(snapshot, 1)
    assert catalog is not None
    for stripe, data in enumerate(stripes):
        if data is None:
            assert reference is not None
            assert store.keep_parity(snapshot, 0, 1, stripe, reference)
        else:
            view = store.place_parity(snapshot, 0, 1, stripe)
            view[:64] = data
            last = stripe == len(stripes) - 1
            store.record_parity(snapshot, 0, 1, stripe, checksum(view[:64] if last else view))
    lengths = (len(stripes) - 1) * CHUNK_BYTES + 64
    catalog.put_parity(store.describe_parity(snapshot, 0, 1, "xor", lengths))
    store.save(catalog)


def test_places_become_ranges():
    places = [(0, 1, 5), (0, 1, 3), (0, 1, 4), (0, 2, 6), (1, 1, 7)]
    assert damages(places) == (Damage(0, 1, 3, 6), Damage(0, 2, 6, 7), Damage(1, 1, 7, 8))
    assert damages(()) == ()


def test_what_is_reserved_is_what_was_said_to_be_needed(tmp_path):
    made(tmp_path)
    files = sum(path.stat().st_size for path in tmp_path.glob("slot*"))
    assert files == arena.required({0: arena.home_bytes(SIZE)}, 3, 1)
    with pytest.raises(ArenaTooSmall) as caught:
        run(made(tmp_path).reserve(0, 1 << 50))
    assert caught.value.needed_bytes > 3 << 50
    assert sum(path.stat().st_size for path in tmp_path.glob("slot*")) == files


def test_new_parity_never_touches_what_the_two_other_slots_keep(tmp_path):
    store, random = made(tmp_path, unit_bytes=6 * CHUNK_BYTES), Random(5)
    states: dict[int, list[bytes]] = {}
    for version in range(24):
        snapshot = SnapshotId(version, 1, version % 3)
        before = SnapshotId(version - 1, 1, (version - 1) % 3)
        state = list(states.get(before.slot, [b"", b""]))
        stripes = [None if version and random.random() < 0.5 else random.randbytes(64) for _ in state]
        put_parity(store, snapshot, stripes, before)
        states[snapshot.slot] = [old if new is None else new for old, new in zip(state, stripes, strict=True)]
        if version % 5 == 4:
            store = again(store)
        for catalog in store.catalogs():
            found = [store.my_part(catalog.snapshot, 0, 1, stripe) for stripe in range(2)]
            assert [bytes(part[0][:64]) for part in found if part] == states[catalog.snapshot.slot]
    assert not store.damaged


def test_parity_of_a_stripe_far_beyond_all_memory_is_refused_at_once(tmp_path):
    store = made(tmp_path)
    store.begin(IDS[0], 1)
    with pytest.raises(ArenaTooSmall):
        store.place_parity(IDS[0], 0, 1, 1 << 40)
    assert all(path.stat().st_size < 8 << 20 for path in tmp_path.glob("slot*.parity*"))


def test_damage_is_found_chunk_by_chunk_after_a_restart_and_the_rest_still_counts(tmp_path):
    store = made(tmp_path)
    write(store, IDS[0], content(0, 1, 0, SIZE))
    put_parity(store, IDS[0], [b"p" * 64], None)
    lane = store.lanes.get(0)
    assert lane is not None
    lane.regions[0].chunk(1)[7] ^= 1
    found = again(store)
    assert found.damaged == {IDS[0]: {(0, 2, 0)}}  # chunk 1 of position 1 belongs to rotation 2
    (holding,) = found.holdings()
    assert (holding.data, holding.parity, holding.damage) == (True, True, (Damage(0, 2, 0, 1),))
    assert found.my_part(IDS[0], 0, 2, 0) is None
    part = found.my_part(IDS[0], 0, 0, 0)
    assert part is not None
    assert checksum(part[0]) == part[1]
    store.place_parity(IDS[0], 0, 1, 0)[0] ^= 1
    assert again(store).damaged == {IDS[0]: {(0, 2, 0), (0, 1, 0)}}


def test_a_unit_that_ends_has_empty_parts_and_others_have_none(tmp_path):
    store = made(tmp_path)
    write(store, IDS[0], content(0, 1, 0, SIZE))
    part = store.my_part(IDS[0], 0, 3, 0)
    assert part is not None
    assert len(part[0]) < CHUNK_BYTES  # the last chunk is short
    assert store.my_part(IDS[0], 0, 0, 1) == (memoryview(b""), 0)
    for nothing in ((IDS[1], 0, 0, 0), (IDS[0], 1, 0, 0), (IDS[0], 0, 1, 0), (IDS[0], 0, 9, 0), (IDS[0], 0, 0, -1)):
        assert store.my_part(*nothing) is None


def test_a_dropped_snapshot_is_none_also_after_a_restart(tmp_path):
    store = made(tmp_path)
    for version in range(3):
        write(store, IDS[version], content(version, 1, 0, SIZE))
    store.drop(IDS[1], 1)
    for each in (store, again(store)):
        assert [h.snapshot for h in each.holdings()] == [IDS[0], IDS[2]]
    store.drop_newer(IDS[0])
    for each in (store, again(store)):
        assert [h.snapshot for h in each.holdings()] == [IDS[0]]
    assert store.begin(IDS[3], 1) is not None
    assert store.begin(IDS[0], 1) is None  # its slot has gone to a newer one


@pytest.mark.parametrize("at", [0, 8, 40, -1, None], ids=str)
def test_a_damaged_record_counts_as_none_and_the_headers_say_what_is_there(tmp_path, at, capsys):
    store = made(tmp_path)
    write(store, IDS[0], content(0, 1, 0, SIZE))
    write(store, IDS[1], content(1, 1, 0, SIZE))
    put_parity(store, IDS[1], [b"p" * 64], None)
    path = tmp_path / "slot1.catalog"
    kept = bytearray(path.read_bytes())
    if at is not None:
        kept[at] ^= 4
    path.write_bytes(kept[:-3] if at is None else kept)
    found = again(store)
    assert "event=record_damaged file=slot1.catalog" in capsys.readouterr().err
    assert [(h.snapshot, h.data, h.parity) for h in found.holdings()] == [(IDS[0], True, False), (IDS[1], True, False)]
    assert found.catalog(IDS[1]) is None
    assert found.describe(0, IDS[1]) == store.describe(0, IDS[1])


def test_a_damaged_membership_is_none(tmp_path):
    store = made(tmp_path)
    path = tmp_path / "membership"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert again(store).membership is None


def test_a_unit_larger_than_all_memory_is_refused_before_anything_is_allocated(tmp_path):
    made(tmp_path)
    sizes = {path: path.stat().st_size for path in tmp_path.iterdir()}
    with pytest.raises(ArenaTooSmall):
        Lanes(tmp_path).outline(0, 1 << 56)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == sizes


def test_a_lost_unit_is_put_back_without_touching_other_slots(tmp_path):
    store = made(tmp_path / "lost")
    states = [content(version, 1, 0, SIZE) for version in range(2)]
    states[1] = states[1][:CHUNK_BYTES] + states[0][CHUNK_BYTES:]  # only its first chunk is new
    for version in range(2):
        write(store, IDS[version], states[version])
    catalog = store.catalog(IDS[1])
    assert catalog is not None
    (unit,) = catalog.units
    for target in (store, made(tmp_path / "spare")):
        lane = target.lanes.get(0)
        assert lane is not None
        lane.regions[1].chunk(0)[0] ^= 1
        lane.regions[1].page[70] ^= 1  # the header
        for place in run(target.prepare(unit)):
            chunk = target.group.chunk_of(1, place[1], place[2])
            source = states[1] + bytes(-len(states[1]) % 64) + b"m" + bytes(63)
            target.put_data(unit, chunk, memoryview(source)[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES])
            target.mark_repaired(IDS[1], place)
        target.seal_unit(unit)
        assert not target.damaged
        assert read(target.node_dir, 0, IDS[1])[0] == states[1]
    assert read(store.node_dir, 0, IDS[0])[0] == states[0]


def spare_with(store: Store, folder: Path) -> tuple[Store, UnitDescriptor]:
    """A store without memory, told to take over what ``store`` has of the first snapshot."""
    write(store, IDS[0], content(0, 1, 0, SIZE))
    unit = store.describe(0, IDS[0])
    assert unit is not None
    folder.mkdir()
    spare = Store(folder)
    spare.enter(Membership(1, 1, 1, 1, PEERS))
    return spare, unit


def put_all(spare: Store, unit: UnitDescriptor, store: Store) -> None:
    lane = store.lanes.get(0)
    assert lane is not None
    for place in run(spare.prepare(unit)):
        chunk = spare.group.chunk_of(1, place[1], place[2])
        spare.put_data(unit, chunk, lane.regions[0].chunk(chunk, chunk_bytes(unit.header.unit_bytes, chunk)))
        spare.mark_repaired(IDS[0], place)
    spare.seal_unit(unit)


def test_a_spare_gives_memory_to_what_it_gets_and_to_the_rest_when_it_is_reserved(tmp_path):
    store = made(tmp_path / "node")
    spare, unit = spare_with(store, tmp_path / "spare")
    put_all(spare, unit, store)
    homes = [arena.home_path(spare.node_dir, home, 0) for home in range(arena.HOMES)]
    assert [arena.allocated(path) > 0 for path in homes] == [True, False, False]
    assert read(spare.node_dir, 0, IDS[0])[0] == content(0, 1, 0, SIZE)
    write(spare, IDS[1], content(1, 1, 0, SIZE))  # a worker that does not wait
    run(spare.reserve(0, SIZE))
    assert [arena.allocated(path) for path in homes] == [arena.home_bytes(SIZE)] * arena.HOMES
    for version in range(2):
        assert read(spare.node_dir, 0, IDS[version])[0] == content(version, 1, 0, SIZE)


def test_too_little_memory_for_all_homes_is_said_before_a_spare_has_taken_anything(tmp_path, monkeypatch):
    store = made(tmp_path / "node")
    spare, unit = spare_with(store, tmp_path / "spare")
    monkeypatch.setattr(arena, "available", lambda _: 2 * arena.home_bytes(SIZE))  # one home would fit
    with pytest.raises(ArenaTooSmall):
        run(spare.prepare(unit))
    assert not list(spare.node_dir.glob("slot*"))


def test_memory_that_others_have_taken_meanwhile_is_said_when_the_rest_is_reserved(tmp_path, monkeypatch):
    store = made(tmp_path / "node")
    spare, unit = spare_with(store, tmp_path / "spare")
    put_all(spare, unit, store)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(ArenaTooSmall):
            run(spare.reserve(0, SIZE))
    assert read(spare.node_dir, 0, IDS[0])[0] == content(0, 1, 0, SIZE)
    run(spare.reserve(0, SIZE))


def test_a_membership_of_another_group_or_none_is_no_share(tmp_path):
    with pytest.raises(LookupError):
        _ = Store(tmp_path).group
    assert Store(tmp_path).holdings() == ()
    run(Store(tmp_path).attach())
