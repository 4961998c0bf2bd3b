"""The detector where ranks called different things, or in another order."""

from __future__ import annotations

import pytest
from unit.rank_reports import LONG, PAIR, WORLD, beyond, called, channel, inside, rank, receive, told, waiting

from ftrain_launcher.detect import mismatch
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import Call, Collectives, Communicator, Departure, NodeReport, Op
from ftrain_launcher.detect.verdict import Kind


def test_the_minority_that_called_something_else_is_named_with_both_calls() -> None:
    (verdict,) = told(*waiting(0, 1, 2), rank(3, inside(called(8, LONG, Op.BROADCAST, root=0))))
    assert (verdict.kind, verdict.ranks, verdict.confidence) == (Kind.MISMATCH, (3,), 0.95)
    assert "rank 3 called broadcast of 100 elements from root 0" in verdict.sentence
    assert "ranks 0, 1, 2 called all_reduce of 100 elements" in verdict.sentence


def test_uneven_parts_are_no_mismatch_where_they_are_legal() -> None:
    for op in (Op.ALL_TO_ALL_SINGLE, Op.GATHER, Op.SCATTER):
        records = [rank(number, inside(called(8, LONG, op, elements=100 + number))) for number in range(4)]
        assert [verdict.kind for verdict in told(*records)] == [Kind.COMMUNICATION_HANG]


def test_orders_that_cross_are_a_mismatch_and_the_one_against_the_others_is_named() -> None:
    other = Communicator("other", (0, 1, 2, 3))
    first = [rank(n, inside(called(8, LONG)), beyond(called(7, 2.0), 1)) for n in (0, 1, 2)]
    crossed = rank(3, beyond(called(7, 2.0)), inside(called(8, LONG), 1))
    (verdict,) = told(*first, crossed, communicators=(WORLD, other))
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, (3,))
    assert "in a circle" in verdict.sentence


@pytest.mark.parametrize(
    ("saver", "idle", "found"),
    [
        (9, LONG + 0.1, [(Kind.HANG, (2,), 0.6)]),
        (9, 0.3, []),
        (5, 0.3, [(Kind.MISMATCH, (0, 2), 0.6)]),
    ],
    ids=["another thread, late", "another thread, not late yet", "the same thread"],
)
def test_a_thread_that_waits_beside_the_training_closes_no_circle(
    saver: int, idle: float, found: list[tuple[Kind, tuple[int, ...], float]]
) -> None:
    """All wait for rank 0 to have written a checkpoint; then rank 2 hangs, whose own thread does the waiting."""
    saving = Communicator("saving", (0, 1, 2, 3))
    save = inside(called(1, 12.0, thread=saver), 1)
    first = rank(0, inside(called(8, idle, thread=5)), idle=idle)
    others = [rank(number, inside(called(8, idle, thread=5)), save, idle=idle) for number in (1, 3)]
    late = rank(2, beyond(called(7, idle + 0.1, thread=5)), save, idle=idle)
    verdicts = told(first, *others, late, communicators=(WORLD, saving))
    assert [(verdict.kind, verdict.ranks, verdict.confidence) for verdict in verdicts] == found


def test_after_a_crash_what_was_called_last_shows_the_mismatch() -> None:
    records = [rank(number, beyond(called(8, 0.1, elements=100 if number else 7))) for number in range(4)]
    report = NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=tuple(records))
    (found,) = mismatch.find([report])
    assert (found.suspects, found.seq) == ((0,), 8)
    detector = Detector(1, {})
    detector.take(report, 100.0)
    assert detector.verdicts(100.0) == []
    verdict = detector.explain(100.0)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, (0,))


def test_recent_operations_settle_between_two() -> None:
    pairs = tuple(Communicator(f"pair{n}", (2 * n, 2 * n + 1)) for n in range(2))
    passed = tuple(called(seq, 5.0) for seq in (7, 8, 9))
    others = [rank(n, Collectives(0, 9, 9, (), passed[-1], recent=passed), idle=0.1) for n in (0, 1)]
    right = rank(2, inside(called(8, LONG), 1))
    wrong = rank(3, inside(called(8, LONG, elements=7), 1))
    (verdict,) = told(*others, right, wrong, communicators=pairs)
    assert verdict.ranks == (3,)


@pytest.mark.parametrize(("sizes", "suspects"), [((4, 4, 1, 4, 4, 1), (3,)), ((4, 4, 4, 4, 4, 4), (2, 3))])
def test_the_round_before_settles_between_two(sizes: tuple[int, ...], suspects: tuple[int, ...]) -> None:
    """Four elements are due, if the operations before say anything: rank 3 has left them out."""
    pair = Communicator("pair", (2, 3))
    passed = tuple(called(seq, 5.0, elements=size) for seq, size in enumerate(sizes, start=4))
    pending = called(10, LONG, elements=4), called(10, LONG, elements=1)
    ranks = [
        rank(number, Collectives(0, 10, 9, (call,), passed[-1], recent=(*passed, call)))
        for number, call in zip((2, 3), pending, strict=True)
    ]
    (verdict,) = told(*ranks, communicators=(pair,))
    assert verdict.ranks == suspects


LEFT_OUT = Departure(Call(0, Op.RECEIVE, 2, 400), Call(0, Op.SEND, 2, 400))
OTHER_SIZE = Departure(Call(0, Op.RECEIVE, 3, 400), Call(0, Op.RECEIVE, 3, 68))


@pytest.mark.parametrize(
    ("mine", "theirs", "suspects"),
    [(None, LEFT_OUT, (3,)), (LEFT_OUT, LEFT_OUT, (2, 3)), (None, None, (2, 3)), (OTHER_SIZE, LEFT_OUT, (3,))],
    ids=["one departed", "both", "nobody", "one only in a size"],
)
def test_of_two_that_wait_for_each_other_the_one_that_departed_from_its_earlier_steps_is_named(
    mine: Departure | None, theirs: Departure | None, suspects: tuple[int, ...]
) -> None:
    first = rank(2, channels=(channel(3, 5, 5, receive(5)),), departure=mine)
    other = rank(3, channels=(channel(2, 4, 6, receive(6)),), departure=theirs)
    (verdict,) = told(first, other, communicators=(PAIR,))
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, suspects)
    assert ("rank 3 departed from the order of earlier steps" in verdict.sentence) == (suspects == (3,))
    if theirs is not None:
        assert verdict.details["program of rank 3"] == (
            "it called recv from 2 (400 bytes) of 'pair' (ranks 2-3) where its earlier steps called send to 2 "
            "(400 bytes) of 'pair' (ranks 2-3)"
        )


def test_of_two_that_called_different_things_the_one_that_departed_is_named_with_the_types() -> None:
    right = rank(2, inside(called(8, LONG), 1))
    wrong = rank(3, inside(called(8, LONG, dtype=7), 1), departure=LEFT_OUT)
    (verdict,) = told(right, wrong)
    assert verdict.ranks == (3,)
    assert (
        "rank 2 called all_reduce of 100 float32 elements, rank 3 called all_reduce of 100 float64" in verdict.sentence
    )
