"""Worlds: what a node keeps of which, what its store makes of that, and how the gate lets go of an origin."""

from pathlib import Path
from random import Random

import msgspec
import pytest
from snapshot_nodes import capture, content

from ftrain_snapshot import arena
from ftrain_snapshot.errors import ArenaTooSmall, PlacementImpossible
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.ledger import Gate
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Origin, Peer
from ftrain_snapshot.read_plan import READ_BYTES_MAX, READ_CHUNKS_MAX, Wanted, read_requests
from ftrain_snapshot.store import Store
from ftrain_snapshot.words import SnapshotId
from ftrain_snapshot.worlds import Worlds, check_origin, follow

OLD, NEWER, OTHER = SnapshotId(5, 1, 0), SnapshotId(9, 2, 1), SnapshotId(12, 3, 2)
SIZE = 3 * CHUNK_BYTES + 1000


def peers(nodes: int) -> tuple[Peer, ...]:
    return tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(nodes))


def origin(snapshot: SnapshotId, nodes: int, position: int) -> Origin:
    return Origin(snapshot, nodes, 1, (), "numpy", peers(nodes)[1:], position)


def member(generation: int, position: int, nodes: int, **more: object) -> Membership:
    return msgspec.structs.replace(Membership(generation, position, 1, 1, peers(nodes)), **more)


# What a node keeps.


def test_the_origin_is_kept_through_generations_and_an_older_one_with_it():
    first = follow(None, member(1, 3, 4))
    second = follow(first, member(2, 2, 3, origin=origin(OLD, 4, 3)))
    assert [o.snapshot for o in second.kept] == [OLD]
    assert (second.is_ours(NEWER), second.is_ours(OLD), second.is_ours(SnapshotId(4, 1, 2))) == (True, False, False)
    same = follow(second, member(3, 2, 3, restore=NEWER))
    assert (same.since, same.kept) == (2, second.kept)  # the newer one may not be protected yet
    third = follow(second, member(3, 1, 2, origin=origin(NEWER, 3, 2)))
    assert [o.snapshot for o in third.kept] == [OLD, NEWER]
    fourth = follow(third, member(4, 1, 4, origin=origin(OTHER, 2, 1)))
    assert [o.snapshot for o in fourth.kept] == [NEWER, OTHER]  # a third slot must be left
    back = follow(third, member(4, 1, 4, origin=origin(OLD, 4, 3)))
    assert [o.snapshot for o in back.kept] == [OLD]  # what is newer was not to be had


def test_a_start_from_nothing_keeps_nothing():
    kept = follow(None, member(2, 2, 3, origin=origin(OLD, 4, 3)))
    assert follow(kept, member(3, 2, 3)).kept == ()


def test_a_restarted_daemon_does_not_keep_again_what_was_let_go():
    membership = member(2, 2, 3, origin=origin(OLD, 4, 3))
    let_go = Worlds(membership, 2, ())
    assert follow(let_go, msgspec.structs.replace(membership, resumed=True)).kept == ()
    assert follow(None, msgspec.structs.replace(membership, resumed=True)).kept == (membership.origin,)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 1 << 50},
        {"nodes": 1},
        {"parity": 4},
        {"position": 4},
        {"holders": peers(5)},
        {"holders": peers(1) * 2},
        {"snapshot": SnapshotId(5, 2, 0)},
        {"snapshot": SnapshotId(5, 1, 3)},
        {"groups": ((0, 1), (2,))},
    ],
    ids=str,
)
def test_an_origin_that_is_of_no_world_is_refused(changes):
    good = origin(OLD, 4, 3)
    check_origin(member(2, 2, 3, origin=good))
    with pytest.raises(PlacementImpossible):
        check_origin(member(2, 2, 3, origin=msgspec.structs.replace(good, **changes)))
    with pytest.raises(PlacementImpossible, match="not from both"):
        check_origin(member(2, 2, 3, origin=good, restore=OLD))


# What its store makes of that.


def stored(folder: Path, *, rotations: tuple[int, ...] = (3,)) -> Store:
    """Position 3 of four, with a snapshot and its parity."""
    folder.mkdir(exist_ok=True)
    store = Store(folder)
    store.enter(member(1, 3, 4))
    for _ in store.reserve(0, SIZE):
        pass
    with capture(folder, 0, OLD, content(5, 3, 0, SIZE), b"m") as captured:
        captured.finish()
    catalog, unit = store.begin(OLD, 1), store.describe(0, OLD)
    assert catalog is not None
    assert unit is not None
    catalog.put(unit)
    for rotation in rotations:
        store.place_parity(OLD, 0, rotation, 0, 1000)[:1000] = bytes(1000)
        store.record_parity(OLD, 0, rotation, 0, 1)
        catalog.put_parity(store.describe_parity(OLD, 0, rotation, "xor", 1000))
    store.save(catalog)
    return store


def test_a_store_tells_of_both_worlds_under_their_own_positions(tmp_path):
    store = stored(tmp_path)
    mine = store.my_part(OLD, 0, 0, 0)
    store.enter(member(2, 1, 3, origin=origin(OLD, 4, 3)))
    assert [(h.snapshot, h.position, h.data, h.parity) for h in store.holdings()] == [(OLD, 3, True, True)]
    assert store.my_part(OLD, 0, 0, 0) == mine
    with capture(tmp_path, 0, NEWER, content(9, 1, 0, SIZE), b"m") as captured:
        captured.finish()
    told = [(OLD, 3), (NEWER, 1)]
    assert [(h.snapshot, h.position) for h in store.holdings()] == told
    assert store.catalogs() == []  # parity of one world is none of another's
    found = Store(tmp_path)
    for _ in found.attach():
        pass
    assert [(h.snapshot, h.position) for h in found.holdings()] == told
    assert found.kept() == (OLD,)


def test_what_is_let_go_gives_its_memory_back_and_is_not_told_any_more(tmp_path):
    store = stored(tmp_path)
    store.enter(member(2, 1, 3, origin=origin(OLD, 4, 3)))
    for _ in store.reserve(0, SIZE // 2):
        pass
    kinds = {path.name.split(".")[-1] for path in tmp_path.glob("slot*.parity*")}
    assert kinds == {"1", "3"}
    assert len(list(tmp_path.glob("slot*.parity0.3"))) == 1  # the others of the old rotation's homes held nothing
    store.let_go(OLD)
    assert store.holdings() == ()
    assert not list(tmp_path.glob("slot*.parity0.3"))
    home = arena.home_bytes(SIZE // 2)
    assert {p.stat().st_size for p in tmp_path.glob("slot*.parity0.1")} == {arena.parity_bytes(home, 2)}
    found = Store(tmp_path)
    for _ in found.attach():
        pass
    assert (found.holdings(), found.kept()) == ((), ())


def test_a_lane_grows_while_the_origin_in_it_is_read(tmp_path):
    store = stored(tmp_path)
    store.enter(member(2, 1, 3, origin=origin(OLD, 4, 3)))
    part = store.my_part(OLD, 0, 1, 0)
    assert part is not None
    before = bytes(part[0])
    for _ in store.reserve(0, 4 * SIZE):
        again = store.my_part(OLD, 0, 1, 0)
        assert again is not None
        assert again[0] == part[0] == before


def test_memory_that_only_the_origin_uses_is_not_counted_as_free(tmp_path, monkeypatch):
    store = stored(tmp_path)
    store.enter(member(2, 1, 3, origin=origin(OLD, 4, 3)))
    needed = 3 * arena.parity_bytes(arena.home_bytes(SIZE), 2)  # of the new rotation: homes and tables are there
    monkeypatch.setattr(arena, "available", lambda _: needed - 1)
    with pytest.raises(ArenaTooSmall):
        next(iter(store.reserve(0, SIZE)), None)
    monkeypatch.setattr(arena, "available", lambda _: needed)
    for _ in store.reserve(0, SIZE):
        pass


def test_a_node_that_had_no_position_tells_nothing_of_the_origin(tmp_path):
    store = stored(tmp_path)
    store.enter(member(2, 1, 3, origin=origin(OLD, 4, -1)))
    assert (store.holdings(), store.seat(OLD), store.my_part(OLD, 0, 0, 0)) == ((), None, None)
    assert store.kept() == (OLD,)


# How the gate lets go.


def gate(*kept: SnapshotId, parity: int = 1) -> Gate:
    made = Gate(nodes=2, parity=parity, generation=4, origin=kept[-1])
    for position in range(2):
        made.arrived(position, (), linked=True, kept=kept)
    return made


def tell(gate: Gate, snapshot: SnapshotId, *, stored: bool = True) -> int:
    for position in range(2):
        gate.sealed(position, snapshot, (7,))
        if stored:
            gate.stored(position, snapshot)
    return gate.advance()[0].slot


def test_the_origin_keeps_its_slot_until_a_snapshot_is_protected():
    made = gate(OLD)
    slots = [made.advance()[0].slot]
    for version in range(6, 10):  # sealed, and not to be protected
        one = SnapshotId(version, 4, slots[-1])
        tell(made, one, stored=False)
        assert made.exposed
        made.abandon(one)
        slots.append(made.advance()[0].slot)
    assert set(slots) == {1, 2}
    assert made.let_go() == []
    safe = SnapshotId(10, 4, slots[-1])
    tell(made, safe)
    assert made.let_go() == [OLD]
    assert not made.exposed
    back = Holding(safe, 1, data=True, parity=True)
    made.arrived(1, [back], linked=True, kept=[OLD])  # who was away when that was said
    made.advance()
    assert made.let_go() == [OLD]


def test_an_older_origin_is_given_up_where_its_slot_is_needed_and_the_origin_never():
    made = gate(OLD, NEWER)
    assert made.advance()[0].slot == 2
    one = SnapshotId(10, 4, 2)
    tell(made, one, stored=False)
    assert made.let_go() == []
    made.abandon(one)
    assert made.advance()[0].slot == OLD.slot
    assert made.let_go() == [OLD]
    another = SnapshotId(11, 4, OLD.slot)
    tell(made, another, stored=False)
    made.abandon(another)
    assert made.advance()[0].slot == 2
    tell(made, SnapshotId(12, 4, 2))
    assert made.let_go() == [NEWER]


def test_without_parity_what_is_sealed_is_safe():
    made = gate(OLD, parity=0)
    tell(made, SnapshotId(6, 4, made.advance()[0].slot), stored=False)
    assert made.let_go() == [OLD]


# What a worker asks for.


def test_requests_cover_what_is_wanted_in_order_within_their_bounds():
    random = Random(1)
    unit = bytearray(random.randbytes(9 << 20))
    for _ in range(8):
        wanted, at = [], 0
        while at < len(unit):
            length = min(len(unit) - at, random.choice([0, 1, 100, 70_000, 5 << 20]))
            wanted.append(Wanted(0, random.randrange(2), at, memoryview(bytearray(length))))
            at += length + random.choice([0, 1000, 2 << 20])
        asked = 0
        for request in read_requests(OLD, wanted):
            assert request.length == sum(stop - start for start, stop in request.ranges) <= READ_BYTES_MAX
            assert [stop - start for start, stop in request.ranges] == [len(view) for view in request.into]
            chunks = {c for start, stop in request.ranges for c in range(start >> 20, -(-stop >> 20))}
            assert len(chunks) == request.chunks <= READ_CHUNKS_MAX
            for (start, stop), view in zip(request.ranges, request.into, strict=True):
                view[:] = unit[start:stop]
            asked += request.length
        assert asked == sum(len(want.into) for want in wanted)
        assert all(bytes(want.into) == unit[want.start : want.start + len(want.into)] for want in wanted)


def test_small_neighbours_share_a_request():
    rows = [Wanted(2, 0, start, memoryview(bytearray(1000))) for start in range(0, 3 << 20, 4000)]
    assert [(r.position, r.lane, len(r.ranges), r.chunks) for r in read_requests(OLD, rows)] == [(2, 0, len(rows), 3)]
