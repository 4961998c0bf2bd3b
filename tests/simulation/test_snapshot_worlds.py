"""Jobs that shrink and grow, under seeded schedules: an origin is let go neither too early nor never.

The job below goes from world to world as a controller would have it: after each fault it starts from the newest
snapshot that is decodable, in whichever world that was captured. Whose share what is, is up to `worlds.py`; when a slot
may be used again, to the gate; the rest of a node is modelled as two rows of three slots. The checker knows who held
the origin when the generation was formed, and looks at it after every event.
"""

from collections import deque
from random import Random

import msgspec
import pytest

from ftrain_snapshot.holdings import newest_complete
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.ledger import SLOTS, Gate, Word
from ftrain_snapshot.membership import Membership, Origin, Peer
from ftrain_snapshot.placement import groups
from ftrain_snapshot.words import SnapshotId
from ftrain_snapshot.worlds import Worlds, follow, is_same_share

SCHEDULES = 400
ROUNDS = 160
NODES_MIN, NODES_MAX = 2, 6


class Node:
    """What one node keeps, and what it knows of worlds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.worlds: Worlds | None = None
        self.data: list[SnapshotId | None] = [None] * SLOTS
        self.parity: list[SnapshotId | None] = [None] * SLOTS

    def enter(self, membership: Membership) -> None:
        """As `Store.enter`."""
        same = is_same_share(self.worlds.membership if self.worlds else None, membership)
        self.worlds = follow(self.worlds, membership)
        if membership.resumed:
            return
        spared = {origin.snapshot for origin in self.worlds.kept if origin.position >= 0}
        limit = membership.restore if same else None
        for row in (self.data, self.parity):
            for slot, held in enumerate(row):
                if held is not None and held not in spared and (limit is None or held > limit):
                    row[slot] = None

    def holdings(self) -> list[Holding]:
        found = []
        for snapshot in sorted({s for s in self.data + self.parity if s is not None}):
            origin = self.worlds.origin(snapshot)
            if origin is None and not self.worlds.is_ours(snapshot):
                continue
            position = self.worlds.membership.position if origin is None else origin.position
            if position >= 0:
                found.append(Holding(snapshot, position, snapshot in self.data, snapshot in self.parity))
        return found

    def kept(self) -> tuple[SnapshotId, ...]:
        return tuple(origin.snapshot for origin in self.worlds.kept)

    def holds(self, snapshot: SnapshotId) -> bool:
        return snapshot in [held.snapshot for held in self.holdings()]

    def let_go(self, snapshot: SnapshotId) -> None:
        kept = tuple(origin for origin in self.worlds.kept if origin.snapshot != snapshot)
        self.worlds = Worlds(self.worlds.membership, self.worlds.since, kept)


class Job:
    """One job, its controller included."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.names = self.generation = self.step = 0
        self.nodes = [self.newcomer() for _ in range(self.random.randint(NODES_MIN, NODES_MAX))]
        self.shapes: dict[int, tuple[int, int]] = {}
        """(nodes, parity) of each generation's world."""
        self.protected: SnapshotId | None = None
        self.reshards = self.losses = self.two_worlds = self.both = 0
        self.form(None, changed=True)

    def newcomer(self) -> Node:
        self.names += 1
        return Node(f"node-{self.names}")

    @property
    def parity(self) -> int:
        return self.shapes[self.generation][1]

    # The controller.

    def decodable(self) -> SnapshotId | None:
        """The newest snapshot, of any world, that can be had from what the nodes that are left hold."""
        told: dict[SnapshotId, dict[int, list[Holding]]] = {}
        for node in self.nodes:
            for held in node.holdings() if node.worlds else ():
                told.setdefault(held.snapshot, {})[held.position] = [held]
        self.two_worlds += len({self.shapes[s.generation] for s in told}) > 1
        for snapshot in sorted(told, reverse=True):
            nodes, parity = self.shapes[snapshot.generation]
            if newest_complete(told[snapshot], groups(nodes, parity), parity) == snapshot:
                return snapshot
        return None

    def form(self, start: SnapshotId | None, *, changed: bool) -> None:
        """The next generation, from ``start``: of the same world, if no node has come, gone or moved."""
        last = self.shapes.get(self.generation)
        self.generation += 1
        same = not changed and last is not None and (start is None or start.generation >= self.world_since)
        parity = last[1] if same and last else self.random.randint(0, min(2, len(self.nodes) - 1))
        self.shapes[self.generation] = (len(self.nodes), parity)
        if not same:
            self.world_since = self.generation
        origin = None
        if start is not None and not same:
            self.reshards += 1
            was_nodes, was_parity = self.shapes[start.generation]
            held = {
                node.name: h.position
                for node in self.nodes
                if node.worlds
                for h in node.holdings()
                if h.snapshot == start
            }
            holders = tuple(Peer(position, name, "", 0) for name, position in held.items())
            origin = Origin(start, was_nodes, was_parity, (), "numpy", holders)
        self.origin = origin
        self.restore = None if origin else start
        peers = tuple(Peer(i, node.name, "", 0) for i, node in enumerate(self.nodes))
        for position, node in enumerate(self.nodes):
            mine = {p.node: p.position for p in origin.holders}.get(node.name, -1) if origin else -1
            own = origin and Origin(origin.snapshot, origin.nodes, origin.parity, (), "numpy", origin.holders, mine)
            node.enter(Membership(self.generation, position, 1, parity, peers, self.restore, origin=own))
            if self.restore is not None:  # rebuilt at once; its parity follows
                node.data[self.restore.slot] = self.restore
        self.had_origin = [node for node in self.nodes if origin and node.holds(origin.snapshot)]
        self.step = start.version + 1 if start else 0
        self.used_ticket = 0
        self.protected = None
        self.sealed: set[SnapshotId] = set()
        self.word = Word(getattr(self, "word", Word(0, -1, False)).ticket, -1, False)
        self.new_gate(self.word)
        self.lines: list[deque[tuple]] = [deque() for _ in self.nodes]
        self.down: deque[tuple] = deque()
        self.todo: list[tuple[int, str, SnapshotId]] = []
        self.cut_off: set[int] = set()
        if self.restore is not None and parity:
            self.todo += [(p, "store", start) for p, n in enumerate(self.nodes) if start not in n.parity]
        for position in range(len(self.nodes)):
            self.announce(position)

    def new_gate(self, word: Word) -> None:
        origin = self.origin.snapshot if self.origin and self.nodes[0].worlds.origin(self.origin.snapshot) else None
        self.gate = Gate(
            nodes=len(self.nodes), parity=self.parity, generation=self.generation, restore=self.restore, origin=origin,
            word=word,
        )  # fmt: skip

    # What happens without faults.

    def announce(self, position: int) -> None:
        node = self.nodes[position]
        ours = [h for h in node.holdings() if h.snapshot not in node.kept()]
        self.lines[position].append(("arrived", ours, node.kept()))

    def tell(self, position: int, *message: object) -> None:
        if position not in self.cut_off:
            self.lines[position].append(message)

    def deliver(self) -> None:
        waiting = [position for position, line in enumerate(self.lines) if line]
        if self.down and (not waiting or self.random.random() < 0.5):
            position, snapshot = self.down.popleft()
            self.nodes[position].let_go(snapshot)
            return
        if not waiting:
            return
        position = self.random.choice(waiting)
        kind, *rest = self.lines[position].popleft()
        if kind == "arrived":
            self.gate.arrived(position, rest[0], linked=True, kept=rest[1])
        elif kind == "sealed":
            self.gate.sealed(position, rest[0], (7,))
        else:
            self.gate.stored(position, rest[0])
        self.advance()

    def advance(self) -> None:
        self.word, dropped = self.gate.advance()
        assert not dropped
        for snapshot in self.gate.let_go():
            self.nodes[0].let_go(snapshot)
            self.down += [(p, snapshot) for p in range(1, len(self.nodes)) if p not in self.cut_off]
        levels = self.gate.levels()
        told = levels.protected if self.parity else levels.sealed
        self.protected = max(
            (s for s in self.sealed | {self.restore} if s and s.version == told), default=self.protected
        )
        self.check()

    def take(self) -> None:
        self.step += 1
        if not self.word.open or self.word.ticket <= self.used_ticket:
            return
        self.used_ticket = self.word.ticket
        snapshot = SnapshotId(self.step, self.generation, self.word.slot)
        self.todo += [(position, "seal", snapshot) for position in range(len(self.nodes))]

    def act(self) -> None:
        if not self.todo:
            return
        position, what, snapshot = self.random.choice(self.todo)
        if what == "seal":
            what, snapshot = next((w, s) for p, w, s in self.todo if p == position and w == "seal")
        self.todo.remove((position, what, snapshot))
        node = self.nodes[position]
        if what == "seal":
            node.data[snapshot.slot] = snapshot
            for other in self.nodes:
                other.parity[snapshot.slot] = snapshot if other.parity[snapshot.slot] == snapshot else None
            if all(n.data[snapshot.slot] == snapshot for n in self.nodes):
                self.sealed.add(snapshot)
                if self.parity and not self.cut_off:
                    self.todo += [(p, "store", snapshot) for p in range(len(self.nodes))]
            self.tell(position, "sealed", snapshot)
        elif node.data[snapshot.slot] == snapshot:
            node.parity[snapshot.slot] = snapshot
            self.tell(position, "stored", snapshot)

    # Faults.

    def cut(self) -> None:
        """A daemon is away for a while: what is being stored is lost, and what it is told, too."""
        position = self.random.randrange(len(self.nodes))
        if position == 0:
            self.restart_gate()
            return
        self.cut_off.add(position)
        self.lines[position].clear()
        self.down = deque(item for item in self.down if item[0] != position)
        self.todo = [t for t in self.todo if t[1] != "store" or t[2] == self.restore]
        self.gate.left(position)
        self.advance()

    def mend(self) -> None:
        for position in sorted(self.cut_off):
            self.cut_off.discard(position)
            node = self.nodes[position]
            node.enter(msgspec.structs.replace(node.worlds.membership, resumed=True))
            self.announce(position)

    def restart_gate(self) -> None:
        self.todo = [t for t in self.todo if t[1] != "store" or t[2] == self.restore]
        for line in self.lines:
            line.clear()
        self.down.clear()
        self.word = Word(self.word.ticket, self.gate.advance()[0].slot, False, self.word.floor)
        self.new_gate(self.word)
        self.cut_off = set(range(1, len(self.nodes)))
        self.announce(0)
        self.mend()

    def crash(self) -> None:
        self.tear()
        safe = self.protected or (self.origin and self.origin.snapshot) or self.restore
        found = self.decodable()
        assert safe is None or (found is not None and found >= safe), "lost to a crash"
        self.form(found, changed=False)

    def tear(self) -> None:
        """What workers are writing is torn, or just complete."""
        for position, what, snapshot in self.todo:
            if what == "seal" and self.random.random() < 0.7:
                self.nodes[position].data[snapshot.slot] = None

    def shrink_or_replace(self) -> None:
        if len(self.nodes) <= NODES_MIN:
            return
        self.tear()
        exposed, safe = self.gate.exposed, self.protected
        lost = self.random.randrange(len(self.nodes))
        del self.nodes[lost]
        self.losses += 1
        found = self.decodable()
        if self.parity and safe is not None and not exposed:
            assert found is not None, "a protected snapshot is lost with a node"
            assert found >= safe
        if self.random.random() < 0.3:  # the shape of before, with a newcomer at any place
            self.nodes.insert(self.random.randrange(len(self.nodes) + 1), self.newcomer())
        self.form(found, changed=True)

    def grow(self) -> None:
        if len(self.nodes) >= NODES_MAX:
            return
        self.tear()
        found = self.decodable()
        assert self.origin is None or found is not None
        self.nodes.append(self.newcomer())
        self.form(found, changed=True)

    # The checker.

    def check(self) -> None:
        """Until a snapshot of this world is safe, all who held the origin still do, and its slot is nobody's."""
        if self.origin is None or self.protected is not None:
            return
        snapshot = self.origin.snapshot
        self.both += len(self.gate._kept) > 1 and bool(self.sealed)
        assert self.word.slot != snapshot.slot
        assert all(node.holds(snapshot) for node in self.had_origin), "let go too early"
        assert self.gate.exposed or not self.parity

    def check_over(self) -> None:
        """Calm for long: nobody keeps what is of another world, and nothing is exposed."""
        assert not any(node.kept() for node in self.nodes), "kept for ever"
        assert not self.gate.exposed


CALM = [Job.deliver, Job.act, Job.take]
FAULTS = [Job.cut, Job.mend, Job.mend, Job.restart_gate, Job.crash, Job.crash, Job.shrink_or_replace, Job.grow]


@pytest.mark.parametrize("block", range(4))
def test_an_origin_is_let_go_neither_too_early_nor_never(block):
    reshards = losses = two_worlds = 0
    for seed in range(block * SCHEDULES // 4, (block + 1) * SCHEDULES // 4):
        job = Job(seed)
        try:
            for _ in range(ROUNDS):
                kind = FAULTS if job.random.random() < 0.06 else CALM
                job.random.choices(kind, [5, 5, 1] if kind is CALM else None)[0](job)
            job.mend()
            for _ in range(150):
                job.random.choices(CALM, [5, 5, 1])[0](job)
            before = job.word.ticket
            for _ in range(300):
                job.random.choices(CALM, [5, 5, 1])[0](job)
            assert job.word.ticket > before + 1, "the gate does not open any more"
            job.check_over()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        reshards, losses, two_worlds = reshards + job.reshards, losses + job.losses, two_worlds + job.two_worlds
    assert min(reshards, losses) > SCHEDULES / 8
    assert two_worlds > SCHEDULES / 40
