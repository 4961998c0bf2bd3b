"""The steps of a rank, added up from its operations and marks."""

import pytest

from ftrain_launcher.rings.step_log import StepLog
from ftrain_launcher.rings.view import Mark

MS = 1_000_000


def mark(number: int, *, at_ms: int, waited_ms: int, head: int = 0, processor_ms: int = 0) -> Mark:
    return Mark(number, number - 1, at_ms * MS, waited_ms * MS, head, processor_ms * MS)


def same(index: int) -> int:
    return index


def test_a_step_goes_from_mark_to_mark():
    log = StepLog(3)
    assert log.end_step(mark(1, at_ms=100, waited_ms=10, processor_ms=50), same) is None
    log.add(0, 1024, 5 * MS)
    log.add(0, 4096, 8 * MS)
    log.add(0, 4096, 7 * MS)
    log.add(2, 64, 1 * MS)
    step = log.end_step(mark(2, at_ms=150, waited_ms=35, processor_ms=70), same)
    assert step is not None
    assert (step.rank, step.step) == (3, 1)
    assert step.seconds == pytest.approx(0.050)
    assert step.own_seconds == pytest.approx(0.025)
    assert step.processor_seconds == pytest.approx(0.020)
    world, pair = step.collectives
    assert (world.communicator, world.operations, world.bytes) == (0, 3, 1024 + 2 * 4096)
    assert world.seconds == pytest.approx(0.020)
    assert world.least_seconds == pytest.approx(0.007), "of those with the most bytes"
    assert (pair.communicator, pair.operations) == (2, 1)


def test_the_next_step_begins_with_nothing():
    log = StepLog(0)
    log.end_step(mark(1, at_ms=10, waited_ms=0), same)
    log.add(0, 8, MS)
    log.end_step(mark(2, at_ms=20, waited_ms=0, head=7), same)
    step = log.end_step(mark(3, at_ms=30, waited_ms=0), same)
    assert step is not None
    assert step.collectives == ()
    assert step.own_seconds == pytest.approx(0.010)


def test_a_step_that_was_not_seen_whole_is_not_told():
    log = StepLog(0)
    log.end_step(mark(1, at_ms=10, waited_ms=0), same)
    log.miss()
    assert log.end_step(mark(2, at_ms=20, waited_ms=0), same) is None
    assert log.end_step(mark(3, at_ms=30, waited_ms=0), same) is not None
    assert log.end_step(mark(5, at_ms=50, waited_ms=0), same) is None, "mark 4 is missing"


def test_communicators_that_have_no_name_are_left_out():
    log = StepLog(0)
    log.end_step(mark(1, at_ms=10, waited_ms=0), same)
    log.add(0, 8, MS)
    log.add(1, 8, MS)
    step = log.end_step(mark(2, at_ms=20, waited_ms=0), {0: None, 1: 5}.__getitem__)
    assert step is not None
    assert [c.communicator for c in step.collectives] == [5]
