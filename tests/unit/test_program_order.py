"""Whether a rank's newest steps take the course of its earlier ones."""

from __future__ import annotations

import pytest

from ftrain_launcher.detect.records import Call, Departure, Op
from ftrain_launcher.rings.program_order import STEPS_LOOKED_AT, departure

CALLS = {
    "a": Call(0, Op.ALL_REDUCE, -1, 400),
    "A": Call(0, Op.ALL_REDUCE, -1, 68),
    "b": Call(1, Op.ALL_REDUCE, -1, 400),
    "s": Call(1, Op.SEND, 3, 64),
    "r": Call(1, Op.RECEIVE, 3, 64),
}
"""``A`` is ``a`` with another size."""


def found(steps: str) -> Departure | None:
    """Steps are divided by blanks; the last one is at hand."""
    return departure([[CALLS[letter] for letter in step.strip(".")] for step in steps.split()])


@pytest.mark.parametrize(
    ("steps", "called", "usual"),
    [
        ("asr asr asr asr ar", "r", "s"),  # left out
        ("asr asr asr asr ass", "s", "r"),  # in another order
        ("asr asr asr asr aasr", "a", "s"),  # once too often
        ("asr asr asr asr asra", "a", None),  # more than a step has
        ("asr asr asr asr as .", None, "r"),  # a step that was given up: the next has begun
        ("asr asr asr asr A", "A", "a"),
        ("asr asr asrb asr asr asrs", "s", None),
        ("a a a ab a . a a ab", None, "a"),  # seen some steps later
    ],
)
def test_a_step_that_takes_another_course_is_told_with_the_place(steps: str, called: str | None, usual: str | None):
    assert found(steps) == Departure(CALLS[called] if called else None, CALLS[usual] if usual else None)


@pytest.mark.parametrize(
    "steps",
    [
        "asr asr asr asr as",
        "asr asr asr asr .",
        "asr asr asr asr asr",
        "asr asrb asr asr asrb asr as",  # evaluation, each third step
        "asr asr b",  # too few to say what is usual, as the first one may differ
        "asr b",
        "asr",
    ],
)
def test_one_that_does_what_some_step_did_has_departed_from_nothing(steps: str):
    assert found(steps) is None


TURNS = "as " + "asr " + "as as asr " * 4
"""The first step differs; then each third one has a transfer more."""


@pytest.mark.parametrize(
    ("steps", "called", "usual"),
    [
        ("as as as .", None, "r"),  # left out: the next step has begun
        ("as as asa", "a", None),  # left out, as in no step
        ("as asr", "r", None),  # not its turn
        ("as asr as", "r", None),  # seen a step later
    ],
)
def test_a_course_that_is_not_due_is_a_departure_too(steps: str, called: str | None, usual: str | None) -> None:
    assert found(TURNS + steps) == Departure(CALLS[called] if called else None, CALLS[usual] if usual else None)


@pytest.mark.parametrize(
    "steps",
    [
        TURNS + "as as asr",
        TURNS + "as as as",  # it may still come
        TURNS + "as",
        "as asr as " + "as as asr " * 2 + "asr",  # too few turns
        "as asr " * 4 + "as as asr as asr as as as as asr asr",  # no turns
    ],
)
def test_one_that_is_due_is_none_and_where_steps_take_no_turns_none_is_due(steps: str) -> None:
    assert found(steps) is None


def test_operations_count_before_sizes() -> None:
    """Sizes that change from step to step say nothing of an operation that was left out."""
    assert found("asr Asr asr Asr Ar") == Departure(CALLS["r"], CALLS["s"])


def tokens(step: int) -> Call:
    """To experts: as many as it happens."""
    return Call(2, Op.ALL_TO_ALL_SINGLE, -1, 1000 + step * step)


def test_sizes_that_are_others_all_the_time_say_nothing_and_hide_nothing() -> None:
    steps = [[CALLS["a"], tokens(step), CALLS["b"]] for step in range(12)]
    assert departure([*steps, [CALLS["a"], tokens(12)]]) is None
    assert departure([*steps, [CALLS["A"], tokens(12)]]) == Departure(CALLS["A"], CALLS["a"])
    assert departure([*steps, [CALLS["a"], tokens(12), tokens(12)]]) == Departure(tokens(12), CALLS["b"])


def test_what_lies_far_back_is_over() -> None:
    assert found("asr asr asr asr ar" + " asr" * (STEPS_LOOKED_AT + 1)) is None
