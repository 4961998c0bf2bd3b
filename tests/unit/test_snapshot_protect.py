"""Protecting, on several nodes in one process: whatever is lost on the way, parity in the end is that of the data."""

from collections import deque
from pathlib import Path
from random import Random

import pytest
from snapshot_nodes import capture, content, edited

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.fetch import Fetches
from ftrain_snapshot.loop import Task
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.node import Node as Member
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.protect import DAMAGED_MAX, Protect
from ftrain_snapshot.store import Store
from ftrain_snapshot.wire import Abandon, Chunk, Describe, Fetch, FetchFailed, PositionSealed, PositionStored
from ftrain_snapshot.words import SnapshotId

SIZE = 2 * CHUNK_BYTES + 5000


class AtOnce:
    """A loop on which nobody waits."""

    def spawn(self, work):
        task = Task(work)
        while not task.done:
            task.step()
        return task


class Link:
    """One direction of a connection, in order."""

    def __init__(self):
        self.queue: deque[tuple[object, bytes]] = deque()

    def send(self, message):
        self.queue.append((message, b""))

    def send_bulk(self, message, body, *, urgent=False):
        self.queue.append((message, body))

    def drop_bulk(self, wanted):
        self.queue = deque(item for item in self.queue if wanted(item[0]))


class Node:
    def __init__(self, folder: Path, position: int, nodes: int, parity: int) -> None:
        peers = tuple(Peer(p, f"node-{p}", "127.0.0.1", 1) for p in range(nodes))
        membership = Membership(1, position, 1, parity, peers)
        folder.mkdir()
        self.store = Store(folder)
        self.store.enter(membership)
        for _ in self.store.reserve(0, SIZE):
            pass
        self.told: list[object] = []
        self.begun: list[int] = []
        self.links: dict[int, Link] = {p: Link() for p in range(nodes) if p != position}
        self.codec = codec_for(parity, "numpy")
        member = Member(
            loop=AtOnce(),
            store=self.store,
            membership=membership,
            group=group_of(position, nodes, parity),
            codec=self.codec,
            links=self.links,
            tell_gate=self.told.append,
            begin_snapshot=self.begun.append,
        )
        self.fetches = Fetches(member)
        self.protect = Protect(member, self.fetches)

    def get(self, source: int, message: object, body: memoryview) -> None:
        match message:
            case Chunk(attempt=0):
                self.protect.on_chunk(source, message, body)
            case Chunk():
                self.fetches.on_chunk(source, message, body)
            case Describe():
                self.protect.on_describe(source, message.unit)
            case Fetch():
                self.fetches.answer(source, message)
            case FetchFailed():
                self.fetches.on_fetch_failed(source, message)


class World:
    """Nodes with lines between them; ``loses`` says which messages do not arrive, ``spoils`` which arrive damaged."""

    def __init__(self, folder: Path, nodes: int, parity: int) -> None:
        self.nodes = [Node(folder / str(p), p, nodes, parity) for p in range(nodes)]
        self.version = -1
        self.states = [content(0, p, 0, SIZE - p * 500_000) for p in range(nodes)]
        self.loses = lambda message: False
        self.spoils = lambda message: False

    def snapshot(self) -> SnapshotId:
        self.version += 1
        return SnapshotId(self.version, 1, self.version % 3)

    def captures(self, snapshot: SnapshotId) -> list[capture]:
        return [
            capture(n.store.node_dir, 0, snapshot, data, b"m") for n, data in zip(self.nodes, self.states, strict=True)
        ]

    def deliver(self) -> None:
        while any(link.queue for node in self.nodes for link in node.links.values()):
            for source, node in enumerate(self.nodes):
                for target, link in node.links.items():
                    if not link.queue:
                        continue
                    message, body = link.queue.popleft()
                    if self.loses(message):
                        continue
                    body = bytearray(body)
                    if body and self.spoils(message):
                        body[len(body) // 2] ^= 1
                    self.nodes[target].get(source, message, memoryview(body))

    def take(self) -> SnapshotId:
        """Capture, seal and deliver everything."""
        snapshot = self.snapshot()
        for position, captured in enumerate(self.captures(snapshot)):
            captured.finish()
            captured.lane.close()
            self.nodes[position].protect.progress(0, snapshot)
        self.deliver()
        return snapshot

    def stored(self, snapshot: SnapshotId) -> list[bool]:
        return [PositionStored(snapshot) in node.told for node in self.nodes]

    def check(self, snapshot: SnapshotId) -> None:
        """All parity is what the generator makes of the data, and every node knows all units."""
        units = [s + bytes(-len(s) % 64) + b"m" + bytes(63) for s in self.states]
        group = self.nodes[0].store.group
        for node in self.nodes:
            catalog, position = node.store.catalog(snapshot), node.store.membership.position
            assert {u.position for u in catalog.units} == set(group.members)
            for rotation in group.parity_rotations(position):
                members, row = group.data_members(rotation), group.row_of(position, rotation)
                for stripe in range(3):
                    chunks = [group.chunk_of(p, rotation, stripe) for p in members]
                    data = [
                        units[p][c * CHUNK_BYTES : (c + 1) * CHUNK_BYTES] for p, c in zip(members, chunks, strict=True)
                    ]
                    longest = max(map(len, data))
                    expected = memoryview(bytearray(longest))
                    rows = node.codec.rows(group.data)[row : row + 1]
                    node.codec.combine(rows, [d + bytes(longest - len(d)) for d in data], (expected,))
                    part = node.store.my_part(snapshot, 0, rotation, stripe)
                    assert (b"" if part is None else bytes(part[0])) == bytes(expected), (position, rotation, stripe)


@pytest.mark.parametrize(("nodes", "parity"), [(2, 1), (4, 1), (4, 2), (4, 3)])
def test_parity_is_that_of_the_data_however_much_of_it_changes(tmp_path, nodes, parity):
    world, random = World(tmp_path, nodes, parity), Random(nodes * parity)
    for changed in ((), (0,), (), (1,)):
        for position in range(nodes):
            if random.random() < 0.6:
                world.states[position] = edited(world.states[position], changed, world.version)
        snapshot = world.take()
        assert all(world.stored(snapshot))
        world.check(snapshot)


def test_each_snapshot_is_said_to_begin_once(tmp_path):
    world = World(tmp_path, 2, 1)
    newest = [world.take() for _ in range(3)][-1]
    world.nodes[0].protect.progress(0, newest)
    assert [node.begun for node in world.nodes] == [[0, 1, 2]] * 2


def test_what_did_not_change_is_not_sent_again(tmp_path):
    world = World(tmp_path, 3, 1)
    world.take()
    snapshot = world.take()
    assert all(world.stored(snapshot))
    for node in world.nodes:
        last = node.protect.last
        assert (last.copied_bytes, last.sent_bytes, last.received_bytes, last.coded_bytes) == (0, 0, 0, 0)
        assert last.kept_chunks > 0


def test_chunks_are_folded_before_the_seal_and_nothing_counts_until_all_is_described(tmp_path):
    world = World(tmp_path, 3, 1)
    snapshot = world.snapshot()
    captures = world.captures(snapshot)
    for position, captured in enumerate(captures):
        captured.publish(2)
        world.nodes[position].protect.progress(0, snapshot)
    world.deliver()
    assert sum(node.protect._assemblies[0].volume.coded_bytes for node in world.nodes) > 4 * CHUNK_BYTES
    assert all(not node.told for node in world.nodes)
    assert all(node.store.holdings() == () for node in world.nodes)
    for position, captured in enumerate(captures):
        captured.finish()
        world.nodes[position].protect.progress(0, snapshot)
    world.deliver()
    assert all(world.stored(snapshot))
    world.check(snapshot)


@pytest.mark.parametrize(("nodes", "parity"), [(4, 2), (4, 3), (5, 2)])
def test_what_is_on_record_is_never_fetched_and_folded_again(tmp_path, nodes, parity):
    world = World(tmp_path, nodes, parity)
    asked: list[Fetch] = []
    world.loses = lambda message: isinstance(message, Fetch) and asked.append(message) is not None
    snapshot = world.take()
    assert all(world.stored(snapshot))
    assert asked == []


@pytest.mark.parametrize("seed", range(3))
def test_chunks_that_are_lost_or_damaged_on_the_way_are_fetched(tmp_path, seed):
    world, random = World(tmp_path, 4, 2), Random(seed)
    for _ in range(2):
        world.loses = lambda message: isinstance(message, Chunk) and message.attempt == 0 and random.random() < 0.4
        world.spoils = lambda message: message.attempt == 0 and random.random() < 0.4
        world.states = [edited(state, (0, 2), world.version) for state in world.states]
        snapshot = world.take()
        assert all(world.stored(snapshot))
        world.check(snapshot)


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("hits", [1, DAMAGED_MAX, 999])
def test_a_sum_that_is_damaged_before_it_is_complete_is_made_again(tmp_path, fetched, hits):
    """Given bits that flip in parity that is still being made, when it is complete, then it is that of the data."""
    world, left = World(tmp_path, 4, 1), hits
    world.loses = lambda message: fetched and isinstance(message, Chunk) and message.attempt == 0
    store, protect = world.nodes[0].store, world.nodes[0].protect

    def flip(message: object) -> bool:
        nonlocal left
        for part in (p for a in protect._assemblies.values() for p in a.parts.values()):
            if left and part.fold.came(0) and 0 not in part.done:
                store.place_parity(snapshot, 0, part.rotation, 0)[left] ^= 4
                left -= 1
        return False

    world.spoils, snapshot = flip, SnapshotId(0, 1, 0)
    assert world.take() == snapshot
    assert left < hits
    assert all(world.stored(snapshot)) == (hits <= DAMAGED_MAX)
    if hits <= DAMAGED_MAX:
        world.check(snapshot)
    else:  # memory that does not hold what is written there
        assert "summed up" in next(m.reason for m in world.nodes[0].told if isinstance(m, Abandon))


def test_a_source_whose_bytes_are_damaged_is_given_up_after_a_few_tries_with_the_reason(tmp_path):
    world = World(tmp_path, 3, 1)
    world.spoils = lambda message: message.rotation == 0
    snapshot = world.take()
    assert world.stored(snapshot) == [False, True, True]
    (told,) = [m for m in world.nodes[0].told if isinstance(m, Abandon)]
    assert "damaged" in told.reason
    world.spoils = lambda message: False
    for link in (1, 2):  # connected anew
        world.nodes[link].protect.on_link(0)
    world.deliver()
    assert all(world.stored(snapshot))
    world.check(snapshot)


def test_a_reference_that_a_holder_lost_costs_the_bytes_and_nothing_else(tmp_path):
    world = World(tmp_path, 3, 1)
    world.take()
    world.nodes[0].store.drop_newer(None)
    world.nodes[0].store.lanes.get(0).regions[0].clear()
    snapshot = world.take()
    assert all(world.stored(snapshot))
    world.check(snapshot)
    assert world.nodes[0].protect.last.received_bytes > 0
    assert world.nodes[1].protect.last.kept_chunks > 0


def test_a_dropped_snapshot_is_forgotten_and_its_chunks_are_ignored(tmp_path):
    world = World(tmp_path, 3, 1)
    first = world.take()
    snapshot = world.snapshot()
    for position, captured in enumerate(world.captures(snapshot)):
        captured.finish()
        world.nodes[position].protect.progress(0, snapshot)
    for node in world.nodes[:2]:
        node.store.drop(snapshot, 1)
        node.protect.drop(snapshot)
        assert not any(isinstance(m, Chunk | Describe) for link in node.links.values() for m, _ in link.queue)
    world.deliver()
    assert not any(world.stored(snapshot))
    assert all(PositionSealed(snapshot, (7,)) in node.told for node in world.nodes)
    world.check(first)
    assert [h.snapshot for h in world.nodes[0].store.holdings()] == [first]
    world.states = [edited(state, (0,), 9) for state in world.states]
    world.check(world.take())
