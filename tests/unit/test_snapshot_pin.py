"""The pin: one snapshot at a time is kept for storage, and training's snapshots go on."""

from itertools import pairwise

from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.ledger import Gate
from ftrain_snapshot.membership import Membership, Origin
from ftrain_snapshot.pin import Pin, newest_written
from ftrain_snapshot.words import SnapshotId


def step(gate: Gate, version: int, *, protected: bool = True) -> SnapshotId:
    """A snapshot is taken, and protected or not."""
    word = gate.advance()[0]
    assert word.open, "the gate is closed"
    one = SnapshotId(version, 1, word.slot)
    for position in range(2):
        gate.sealed(position, one, (7,))
        if protected:
            gate.stored(position, one)
    if not protected:
        gate.abandon(one)
    gate.advance()
    return one


def opened(every: int, newest: int | None = None) -> Gate:
    gate = Gate(nodes=2, parity=1, generation=1, pin=Pin(every=every, newest=newest))
    for position in range(2):
        gate.arrived(position, (), linked=True)
    return gate


def test_nothing_is_pinned_where_there_is_no_storage() -> None:
    gate = opened(0)
    for version in range(5):
        step(gate, version)
    assert gate.pin.snapshot is None


def test_the_first_protected_version_of_each_interval_is_pinned() -> None:
    gate = opened(3)
    step(gate, 0)
    step(gate, 1)
    assert gate.pin.snapshot is None
    due = step(gate, 2)
    assert gate.pin.snapshot == due
    gate.pin.release(due)
    step(gate, 4)
    assert gate.pin.snapshot is None
    assert gate.pin.news() == [("durable_due", 2)]
    late = step(gate, 7)  # 5 had no snapshot
    assert gate.pin.snapshot == late


def test_while_one_is_pinned_snapshots_alternate_between_the_two_other_slots() -> None:
    gate = opened(1)
    pinned = step(gate, 0)
    slots = [step(gate, version).slot for version in range(1, 9)]
    assert gate.pin.snapshot == pinned
    assert pinned.slot not in slots
    assert all(a != b for a, b in pairwise(slots))
    gate.pin.release(pinned)
    assert pinned.slot in [step(gate, version).slot for version in (9, 10, 11)]


def test_a_version_that_is_due_meanwhile_is_passed_over_and_the_newest_follows() -> None:
    gate = opened(2)
    pinned = step(gate, 1)
    for version in range(2, 7):
        newest = step(gate, version)
    assert gate.pin.snapshot == pinned
    assert gate.pin.news() == [("durable_due", 1), ("durable_passed_over", 3), ("durable_passed_over", 5)]
    gate.pin.release(pinned)
    gate.advance()
    assert gate.pin.snapshot == newest
    gate.pin.release(newest)
    gate.advance()
    assert gate.pin.snapshot is None


def test_what_cannot_be_protected_is_not_pinned_and_the_pin_gives_way_to_it() -> None:
    """Kept are the newest protected and the newest sealed: there is no third slot but the pinned one."""
    gate = opened(5)
    pinned = step(gate, 4)
    kept = step(gate, 5)
    unprotected = step(gate, 6, protected=False)
    assert gate.pin.snapshot is None
    assert gate.pin.news() == [("durable_due", 4), ("durable_gave_way", 4)]
    assert gate.advance()[0].slot == pinned.slot
    assert {kept.slot, unprotected.slot, pinned.slot} == {0, 1, 2}


def test_a_version_that_is_asked_for_is_pinned_whatever_the_interval_once_the_pin_is_free() -> None:
    gate = opened(5)
    due = step(gate, 4)
    gate.pin.ask(5)
    asked = step(gate, 6)
    assert gate.pin.snapshot == due
    gate.pin.release(due)
    gate.advance()
    assert gate.pin.snapshot == asked
    gate.pin.ask(6)
    gate.pin.release(asked)
    gate.advance()
    assert gate.pin.snapshot is None, "it was pinned when it was asked for again"


def test_release_of_another_snapshot_changes_nothing() -> None:
    gate = opened(1)
    pinned = step(gate, 0)
    gate.pin.release(SnapshotId(0, 2, pinned.slot))
    assert gate.pin.snapshot == pinned


def test_without_parity_what_is_sealed_is_pinned() -> None:
    gate = Gate(nodes=1, parity=0, generation=1, pin=Pin(every=1))
    gate.arrived(0, (), linked=True)
    one = SnapshotId(0, 1, gate.advance()[0].slot)
    gate.sealed(0, one, (7,))
    assert gate.advance()[0].slot != one.slot
    assert gate.pin.snapshot == one


def test_a_start_that_is_due_is_pinned_once_it_is_protected_again() -> None:
    start = SnapshotId(9, 1, 2)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start, pin=Pin(every=5, newest=4))
    gate.arrived(0, [Holding(start, 0, True, True)], linked=True)
    gate.arrived(1, [Holding(start, 1, True, False)], linked=True)
    gate.advance()
    assert gate.pin.snapshot is None
    gate.stored(1, start)
    gate.advance()
    assert gate.pin.snapshot == start


def test_what_was_written_before_is_not_due_again() -> None:
    start = SnapshotId(9, 1, 2)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start, pin=Pin(every=5, newest=9))
    for position in range(2):
        gate.arrived(position, [Holding(start, position, True, True)], linked=True)
    gate.advance()
    assert gate.pin.snapshot is None


def test_a_snapshot_is_in_flight_from_its_first_fact_until_it_is_protected() -> None:
    gate = opened(0)
    one = SnapshotId(0, 1, gate.advance()[0].slot)
    assert not gate.in_flight
    gate.sealed(0, one, (7,))
    assert gate.in_flight
    gate.sealed(1, one, (7,))
    gate.stored(0, one)
    assert gate.in_flight
    gate.stored(1, one)
    gate.advance()
    assert not gate.in_flight


def test_what_a_change_of_the_world_interrupted_is_written_from_the_first_safe_snapshot_after_it() -> None:
    start = SnapshotId(230, 1, 2)
    origin = Origin(start, 4, 1, (), "none", (), 0)
    for newest in (None, 99):  # that of step 199 was being written
        m = Membership(2, 0, 1, 1, (), origin=origin, durable_newest=newest)
        pin = Pin(every=100, newest=newest_written(m))
        first = SnapshotId(231, 2, 0)
        pin.consider(first)
        assert pin.snapshot == first
