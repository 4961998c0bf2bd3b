"""The ledger: which snapshots count, and when the gate opens for which slot."""

from ftrain_snapshot.inventory import Damage, Holding
from ftrain_snapshot.ledger import RECORDS_MAX, SLOTS, Exposure, Gate, Word
from ftrain_snapshot.status import Levels
from ftrain_snapshot.words import SnapshotId


def snapshot(version: int, generation: int = 1) -> SnapshotId:
    return SnapshotId(version, generation, version % 3)


def test_exposure_is_timed_from_its_beginning_to_its_end():
    exposure = Exposure()
    assert (exposure.seconds(5.0), exposure.last_seconds) == (0.0, 0.0)
    for exposed, now in ((False, 5.0), (True, 6.0), (True, 7.0)):
        exposure.update(exposed, now)
    assert (exposure.seconds(8.5), exposure.last_seconds) == (2.5, 0.0)
    exposure.update(False, 10.0)
    assert (exposure.seconds(20.0), exposure.last_seconds) == (0.0, 4.0)


def opened(gate: Gate, nodes: int = 2) -> Word:
    for position in range(nodes):
        gate.arrived(position, (), linked=True)
    return gate.advance()[0]


def protect(gate: Gate, one: SnapshotId, nodes: int = 2) -> Word:
    for position in range(nodes):
        gate.sealed(position, one, (7,))
        gate.stored(position, one)
    return gate.advance()[0]


def test_the_gate_opens_when_all_are_there_and_again_when_the_snapshot_is_protected():
    gate = Gate(nodes=2, parity=1, generation=1)
    gate.arrived(0, (), linked=True)
    assert gate.advance()[0] == Word(0, -1, False)
    word = opened(gate)
    assert (word.ticket, word.open) == (1, True)
    one = SnapshotId(0, 1, word.slot)
    gate.sealed(0, one, (7,))
    assert not gate.advance()[0].open
    gate.sealed(1, one, (7,))
    assert not gate.advance()[0].open
    assert gate.levels() == Levels(sealed=0)
    for position in (0, 1):
        gate.stored(position, one)
    word = gate.advance()[0]
    assert (word.ticket, word.open) == (2, True)
    assert word.slot != one.slot
    assert gate.levels() == Levels(sealed=0, protected=0)


def test_what_a_lost_position_had_sealed_is_remembered():
    gate = Gate(nodes=2, parity=1, generation=1)
    word = protect(gate, SnapshotId(0, 1, opened(gate).slot))
    assert gate.newest_of_positions() == (0, 0)
    gate.sealed(0, SnapshotId(1, 1, word.slot), (7,))
    gate.left(1)
    assert gate.newest_of_positions() == (1, 0)


def test_two_complete_snapshots_are_kept():
    gate = Gate(nodes=2, parity=1, generation=1)
    word, slots = opened(gate), []
    for version in range(6):
        slots.append(word.slot)
        word = protect(gate, SnapshotId(version, 1, word.slot))
    assert all(len(set(slots[i : i + 3])) == 3 for i in range(4))


def test_a_lost_daemon_hides_the_ticket_and_the_same_ticket_comes_back():
    gate = Gate(nodes=2, parity=1, generation=1)
    word = opened(gate)
    gate.left(1)
    assert gate.advance()[0] == Word(word.ticket, word.slot, False, -1)
    gate.arrived(1, (), linked=True)
    assert gate.advance()[0] == word


def test_what_was_in_flight_when_a_daemon_left_counts_once_it_is_sealed_everywhere():
    gate = Gate(nodes=2, parity=1, generation=1)
    first = SnapshotId(0, 1, opened(gate).slot)
    word = protect(gate, first)
    second = SnapshotId(1, 1, word.slot)
    gate.sealed(0, second, (7,))
    gate.left(1)
    gate.arrived(1, [Holding(first, 1, True, True)], linked=True)
    assert not gate.advance()[0].open
    gate.sealed(1, second, (7,))
    word = gate.advance()[0]
    assert word.open
    assert word.slot not in (first.slot, second.slot)
    assert gate.levels() == Levels(sealed=1, protected=0)


def test_a_skipped_snapshot_is_dropped_everywhere_and_late_facts_about_it_are_stale():
    gate = Gate(nodes=2, parity=1, generation=1)
    one = SnapshotId(0, 1, opened(gate).slot)
    gate.skip(one)
    word, dropped = gate.advance()
    assert dropped == (one,)
    assert word.open
    assert word.ticket == 2
    gate.sealed(0, one, (7,))
    gate.sealed(1, one, (7,))
    assert gate.advance() == (word, ())
    assert gate.levels() == Levels()


def test_ranks_that_disagree_on_the_layout_have_no_snapshot():
    gate = Gate(nodes=2, parity=1, generation=1)
    one = SnapshotId(0, 1, opened(gate).slot)
    gate.sealed(0, one, (7, 7))
    gate.sealed(1, one, (7, 8))
    assert gate.advance()[1] == (one,)
    assert gate.levels() == Levels()


def test_without_parity_sealed_is_enough():
    gate = Gate(nodes=1, parity=0, generation=1)
    word = opened(gate, 1)
    gate.sealed(0, SnapshotId(0, 1, word.slot), (1,))
    assert gate.advance()[0].ticket == 2
    assert gate.levels() == Levels(sealed=0)


def test_no_snapshot_begins_until_the_start_is_protected_again():
    """Else a lost node would cost two sealed snapshots: the start, which has no parity yet, and the next one."""
    start = snapshot(8)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start)
    for position in range(2):
        gate.arrived(position, [Holding(start, position, True, position == 0)], linked=True)
    assert not gate.advance()[0].open
    gate.stored(1, start)
    assert gate.advance()[0].open


def test_the_start_of_a_generation_is_kept_until_something_newer_is_protected():
    start = snapshot(8)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start)
    for position in range(2):
        gate.arrived(position, [Holding(start, position, True, position == 0)], linked=True)
    gate.give_up_start()
    word = gate.advance()[0]
    assert word.open
    assert word.slot != start.slot
    one = SnapshotId(9, 2, word.slot)
    for position in range(2):
        gate.sealed(position, one, (7,))
    gate.abandon(one)
    word = gate.advance()[0]
    assert word.slot not in (start.slot, one.slot)


def test_a_restarted_gate_goes_on_with_the_ticket_it_had_given_out():
    given_out = Word(5, 2, False, 1)
    gate = Gate(nodes=2, parity=1, generation=1, word=given_out)
    older = [SnapshotId(1, 1, 2), SnapshotId(2, 1, 0), SnapshotId(3, 1, 1)]
    for position in range(2):
        gate.arrived(position, [Holding(s, position, True, True) for s in older], linked=True)
    assert gate.advance()[0] == Word(5, 2, True, 1)
    assert gate.levels() == Levels(sealed=3, protected=3)
    taken = SnapshotId(4, 1, 2)
    assert protect(gate, taken).ticket == 6


def test_the_job_is_exposed_from_a_start_without_parity_until_it_or_a_newer_one_is_protected():
    start = snapshot(8)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start)
    for position in range(2):
        gate.arrived(position, [Holding(start, position, True, position == 0)], linked=True)
    assert gate.exposed
    gate.stored(1, start)
    assert not gate.exposed


def test_damaged_parity_does_not_count_as_stored_until_it_is_repaired():
    start = snapshot(8)
    gate = Gate(nodes=2, parity=1, generation=2, restore=start)
    gate.arrived(0, [Holding(start, 0, True, True)], linked=True)
    gate.arrived(1, [Holding(start, 1, True, True, damage=(Damage(0, 1, 0, 1),))], linked=True)
    assert gate.exposed
    gate.stored(1, start)
    assert not gate.exposed


def test_the_job_is_exposed_while_an_abandoned_snapshot_is_the_newest():
    gate = Gate(nodes=2, parity=1, generation=1)
    one = SnapshotId(0, 1, opened(gate).slot)
    assert not gate.exposed
    gate.abandon(one)
    assert gate.exposed
    for position in range(2):
        gate.sealed(position, one, (7,))
    two = SnapshotId(1, 1, gate.advance()[0].slot)
    assert gate.exposed
    protect(gate, two)
    assert not gate.exposed
    gate.skip(SnapshotId(2, 1, gate.advance()[0].slot))
    assert not gate.exposed


def test_facts_that_cannot_be_do_not_pile_up():
    gate = Gate(nodes=2, parity=1, generation=1)
    opened(gate)
    for version in range(3 * RECORDS_MAX, 0, -1):  # as nobody says them: newest first
        gate.stored(1, SnapshotId(version, 0, version % 3))
        gate.abandon(snapshot(version))
        gate.abandon(SnapshotId(version, 7, 0))
    assert len(gate._records) == RECORDS_MAX
    assert len(gate._abandoned) == SLOTS
