"""How far a peer's clock is: right to half the best round trip, whatever the ways there and back take."""

from __future__ import annotations

import random

import pytest

from ftrain_launcher.clock import Sample, estimate


def ask(ahead_seconds: float, there_seconds: float, back_seconds: float, now: float = 1000.0) -> Sample:
    """A peer whose clock is ahead by so much is asked."""
    return Sample(now, now + there_seconds + ahead_seconds, now + there_seconds + back_seconds)


def test_equal_ways_give_the_exact_offset() -> None:
    offset = estimate([ask(-7.5, 0.25, 0.25)])
    assert offset is not None
    assert offset.seconds == 7.5
    assert offset.error_seconds == 0.25


def test_the_sample_with_the_least_round_trip_counts() -> None:
    offset = estimate([ask(3.0, 0.9, 0.1), ask(3.0, 0.001, 0.001), ask(3.0, 0.1, 2.0)])
    assert offset is not None
    assert offset.seconds == pytest.approx(-3.0)
    assert offset.error_seconds == pytest.approx(0.001)


def test_the_error_is_never_more_than_is_said(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        ahead = dice.uniform(-1e6, 1e6)
        offset = estimate(ask(ahead, dice.expovariate(100), dice.expovariate(100), dice.random()) for _ in range(5))
        assert offset is not None
        assert abs(offset.seconds + ahead) <= offset.error_seconds + 1e-9


def test_without_an_answer_nothing_is_known() -> None:
    assert estimate([]) is None
