"""The gate and the ledger under seeded schedules of steps, crashes, cut lines, restarted daemons and lost nodes.

The world below is what daemons and workers do, with every message late by a random time; it knows the truth. The
checker compares it with the ledger: what was protected is never lost to a node, what was sealed never to a crash, the
gate never gives away what may be needed, and once faults stop, snapshots go on.
"""

from random import Random

import pytest

from ftrain_snapshot.holdings import newest_complete
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.ledger import SLOTS, Gate, Word
from ftrain_snapshot.pin import Pin
from ftrain_snapshot.words import SnapshotId

SCHEDULES = 600
ROUNDS = 120


class World:
    """One job: per position three slots of data and parity, a line to the gate, and the workers' steps."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.nodes = self.random.randint(2, 5)
        self.generation = 0
        self.data: list[list[SnapshotId | None]] = [[None] * SLOTS for _ in range(self.nodes)]
        self.parity: list[list[SnapshotId | None]] = [[None] * SLOTS for _ in range(self.nodes)]
        self.step = 0
        self.word = Word(0, -1, False)
        self.sealed_truth: list[SnapshotId] = []
        self.protected_told: SnapshotId | None = None
        self.every = self.random.choice([0, 1, 4])
        """A snapshot is due for storage at every so many steps."""
        self.pins = 0
        self.form(None)

    # What a new generation does.

    def form(self, restore: SnapshotId | None) -> None:
        self.generation += 1
        for position in range(self.nodes):
            for kept in (self.data[position], self.parity[position]):
                for slot in range(SLOTS):
                    if kept[slot] is not None and (restore is None or kept[slot] > restore):
                        kept[slot] = None
        self.step = restore.version + 1 if restore else 0
        self.sealed_truth = [s for s in self.sealed_truth if restore is not None and s <= restore]
        self.restore = restore
        self.used_ticket = 0
        self.shown = Word(self.word.ticket, -1, False)
        self.new_gate(Word(self.word.ticket, -1, False))
        self.connected = set(range(self.nodes))
        self.lines: list[list[tuple]] = [[] for _ in range(self.nodes)]
        self.todo: list[tuple] = []  # (position, what, snapshot): done in any order
        self.broken: set[SnapshotId] = set()  # bytes in flight were lost: cannot be protected
        self.dropped: set[SnapshotId] = set()
        self.skipped: dict[int, list[SnapshotId]] = {position: [] for position in range(self.nodes)}
        if restore is not None:
            for position in range(self.nodes):
                assert self.data[position][restore.slot] == restore
                if self.parity[position][restore.slot] != restore:
                    self.todo.append((position, "store", restore))
        for position in range(self.nodes):
            self.announce(position)

    def new_gate(self, word: Word) -> None:
        pin = Pin(every=self.every)
        self.gate = Gate(
            nodes=self.nodes, parity=1, generation=self.generation, restore=self.restore, word=word, pin=pin
        )

    def holdings(self, position: int) -> list[Holding]:
        slots = range(SLOTS)
        ids = {s for s in self.data[position] + self.parity[position] if s is not None}
        return [
            Holding(s, position, any(self.data[position][i] == s for i in slots),
                    any(self.parity[position][i] == s for i in slots))
            for s in sorted(ids)
        ]  # fmt: skip

    def announce(self, position: int) -> None:
        self.lines[position] = [("arrived", tuple(self.holdings(position)))]
        self.lines[position] += [("skip", snapshot) for snapshot in self.skipped[position]]

    def tell(self, position: int, *message: object) -> None:
        if position in self.connected:
            self.lines[position].append(message)

    # What happens without faults.

    def deliver(self) -> None:
        waiting = [p for p in range(self.nodes) if self.lines[p]]
        if not waiting:
            return
        position = self.random.choice(waiting)
        kind, *rest = self.lines[position].pop(0)
        if kind == "arrived":
            self.gate.arrived(position, rest[0], linked=True)
        elif kind == "sealed":
            self.gate.sealed(position, rest[0], (7,))
        elif kind == "stored":
            self.gate.stored(position, rest[0])
        elif kind == "skip":
            self.gate.skip(rest[0])
        self.advance()

    def advance(self) -> None:
        before, pinned = self.word, self.gate.pin.snapshot
        word, dropped = self.gate.advance()
        self.pins += self.gate.pin.snapshot not in (None, pinned)
        self.check_pinned()
        if word.ticket != before.ticket:
            assert word.ticket == before.ticket + 1
            self.check_given_out(word.slot)
        self.word = self.shown = word
        for snapshot in dropped:
            self.todo = [t for t in self.todo if t[2] != snapshot or t[1] == "seal"]
            for position in range(self.nodes):
                for kept in (self.data[position], self.parity[position]):
                    if kept[snapshot.slot] == snapshot:
                        kept[snapshot.slot] = None
            self.dropped.add(snapshot)
            self.sealed_truth = [s for s in self.sealed_truth if s != snapshot]
        self.check_pinned()
        protected = self.gate.levels().protected
        if protected is not None:
            told = [s for s in self.sealed_truth if s.version == protected]
            self.protected_told = max(told, default=self.protected_told)

    def take(self) -> None:
        """Rank 0 commits; the others follow in their own time, each after what it has begun before."""
        if not self.shown.open or self.shown.ticket <= self.used_ticket:
            self.step += 1
            return
        self.used_ticket = self.shown.ticket
        snapshot = SnapshotId(self.step, self.generation, self.shown.slot)
        self.step += 1
        skipper = self.random.randrange(self.nodes) if self.random.random() < 0.1 else None
        for position in range(self.nodes):
            what = "skip" if position == skipper else "seal"
            self.todo.append((position, what, snapshot))

    def act(self) -> None:
        if not self.todo:
            return
        position, what, snapshot = self.random.choice(self.todo)
        mine = [t for t in self.todo if t[0] == position and t[1] in ("begin", "seal", "skip")]
        if what in ("seal", "skip"):
            position, what, snapshot = mine[0]  # a worker does one after the other
        self.todo.remove((position, what, snapshot))
        if what == "skip":
            self.data[position][snapshot.slot] = None
            self.skipped[position].append(snapshot)
            self.tell(position, "skip", snapshot)
        elif what == "seal":
            self.data[position][snapshot.slot] = snapshot
            if snapshot in self.dropped:
                self.data[position][snapshot.slot] = None
                return
            self.tell(position, "sealed", snapshot)
            if len(self.connected) < self.nodes:
                self.broken.add(snapshot)
            for other in range(self.nodes):
                if self.parity[other][snapshot.slot] != snapshot:
                    self.parity[other][snapshot.slot] = None  # first bytes have come
            if all(self.data[p][snapshot.slot] == snapshot for p in range(self.nodes)):
                self.sealed_truth.append(snapshot)
                if snapshot not in self.broken:
                    self.todo += [(p, "store", snapshot) for p in range(self.nodes)]
        elif all(self.data[p][snapshot.slot] == snapshot for p in range(self.nodes)):
            self.parity[position][snapshot.slot] = snapshot
            self.tell(position, "stored", snapshot)

    def unpin(self) -> None:
        """What was pinned is on storage, or was given up; perhaps it is said twice."""
        pinned = self.gate.pin.snapshot
        if pinned is not None:
            self.gate.pin.release(pinned)
            self.advance()
            self.gate.pin.release(pinned)
            assert self.gate.pin.snapshot != pinned

    # Faults.

    def cut(self) -> None:
        """A daemon's line breaks, or it is killed: what is being stored is lost."""
        position = self.random.randrange(1, self.nodes)
        self.connected.discard(position)
        self.lines[position] = []
        self.lose_in_flight()
        self.gate.left(position)
        self.advance()

    def lose_in_flight(self) -> None:
        """Bytes on their way are lost: of what some have sealed, and not all have stored."""
        begun = {s for kept in self.data for s in kept if s is not None}
        self.broken |= {t[2] for t in self.todo if t[2] in begun and t[2] != self.restore}
        self.todo = [t for t in self.todo if t[1] != "store" or t[2] == self.restore]

    def mend(self) -> None:
        for position in set(range(self.nodes)) - self.connected:
            self.connected.add(position)
            self.announce(position)

    def restart_gate(self) -> None:
        """The gate's daemon is killed; the word stays open in the page until it is back."""
        if self.random.random() < 0.5:
            self.take()
        self.lose_in_flight()
        self.shown = Word(self.word.ticket, self.word.slot, False, self.word.floor)
        self.new_gate(self.shown)
        self.connected = set(range(self.nodes))
        for position in range(self.nodes):
            self.announce(position)

    def crash(self) -> None:
        """All workers are gone: what they were writing is torn."""
        for position, what, snapshot in self.todo:
            if what != "store" and self.random.random() < 0.7:
                self.data[position][snapshot.slot] = None
        found = newest_complete({p: self.holdings(p) for p in range(self.nodes)}, self.nodes, 1)
        newest = max(self.sealed_truth, default=None)
        assert newest is None or (found is not None and found >= newest), "a sealed snapshot is lost to a crash"
        self.form(found)

    def lose_node(self) -> None:
        lost = self.random.randrange(self.nodes)
        for position, what, snapshot in self.todo:
            if what != "store" and self.random.random() < 0.7:
                self.data[position][snapshot.slot] = None
        found = newest_complete({p: self.holdings(p) for p in range(self.nodes) if p != lost}, self.nodes, 1)
        told = self.protected_told
        assert told is None or (found is not None and found >= told), "a protected snapshot is lost with a node"
        self.data[lost] = [found if found and found.slot == i else None for i in range(SLOTS)]
        self.parity[lost] = [None] * SLOTS
        if found is not None and found not in self.sealed_truth:
            self.sealed_truth.append(found)
        self.protected_told = None  # until the spare has made its parity again
        self.form(found)

    # The checker.

    def check_pinned(self) -> None:
        """What is pinned is whole on every node, and no ticket is for its slot."""
        pinned = self.gate.pin.snapshot
        if pinned is not None:
            assert all(data[pinned.slot] == pinned for data in self.data)
            assert self.word.slot != pinned.slot
            assert (pinned.version + 1) // self.every >= 1

    def check_given_out(self, slot: int) -> None:
        """Without this slot, two snapshots and the newest are left, and what was protected survives any node."""
        there = {s for s in self.sealed_truth if all(data[s.slot] == s for data in self.data)}
        assert len([s for s in there if s.slot != slot]) >= min(2, len(there))
        kept = {p: [h for h in self.holdings(p) if h.snapshot.slot != slot] for p in range(self.nodes)}
        newest = max(self.sealed_truth, default=None)
        if newest is not None:
            assert newest_complete(kept, self.nodes, 1) == newest
        if self.protected_told is not None:
            for lost in range(self.nodes):
                left = {p: held for p, held in kept.items() if p != lost}
                found = newest_complete(left, self.nodes, 1)
                assert found is not None
                assert found >= self.protected_told


@pytest.mark.parametrize("block", range(4))
def test_nothing_that_counts_is_ever_lost_and_snapshots_go_on(block):
    captured = pinned = 0
    for seed in range(block * SCHEDULES // 4, (block + 1) * SCHEDULES // 4):
        world = World(seed)
        calm = [World.deliver, World.act, World.take]
        faults = [World.cut, World.mend, World.mend, World.restart_gate, World.crash, World.lose_node, World.unpin]
        for _ in range(ROUNDS):
            kind = faults if world.random.random() < 0.06 else calm
            world.random.choices(kind, [5, 5, 1] if kind is calm else None)[0](world)
        world.mend()
        before = world.word.ticket
        for _ in range(400):
            world.random.choices(calm, [5, 5, 1])[0](world)
        assert world.word.ticket > before + 1, f"seed {seed}: the gate does not open any more"
        captured += world.word.ticket
        pinned += world.pins
        held = world.gate.pin.snapshot
        assert not world.every or held is not None, f"seed {seed}: nothing is due any more"
        world.unpin()
        before = world.word.ticket
        for _ in range(300):
            world.random.choices(calm, [5, 5, 1])[0](world)
        assert world.word.ticket > before, f"seed {seed}: a slot has leaked"
    assert captured > SCHEDULES
    assert pinned > SCHEDULES / 4


def test_the_same_seed_gives_the_same_story():
    def story(seed: int) -> list[Word]:
        world, words = World(seed), []
        for _ in range(300):
            world.random.choice([World.deliver, World.act, World.take, World.cut, World.mend])(world)
            words.append(world.word)
        return words

    assert story(5) == story(5)
