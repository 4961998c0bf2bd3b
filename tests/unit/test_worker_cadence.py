from __future__ import annotations

import random
from itertools import pairwise

import pytest

from ftrain.cadence import INTERVAL_STEPS_MAX, QUIET_EVERY_STEPS, Cadence


def train(cadence: Cadence, steps: int, cost: float, busy_steps: int = 1, jitter: float = 0.0) -> list[int]:
    """Steps of a second each; a snapshot makes the ``busy_steps`` after it take ``cost`` longer together."""
    noise = random.Random(1)
    now, left, captured = 0.0, 0, []
    for step in range(steps):
        now += 1.0 + noise.uniform(-jitter, jitter) + (cost / busy_steps if left else 0.0)
        left = max(0, left - 1)
        if cadence.due(now, idle=left == 0):
            captured.append(step)
            left = busy_steps
    return captured


def gaps(captured: list[int], last: int) -> list[int]:
    return [b - a for a, b in pairwise(captured)][-last:]


def test_what_costs_nothing_is_taken_at_every_step() -> None:
    captured = train(Cadence(), 400, 0.0)
    assert set(gaps(captured, 200)) <= {1, 2}
    assert gaps(captured, 200).count(2) <= 200 // QUIET_EVERY_STEPS + 1


@pytest.mark.parametrize(("cost", "interval"), [(0.019, 1), (0.05, 3), (0.19, 10), (1.0, 50)])
@pytest.mark.parametrize("busy_steps", [1, 3])
def test_it_settles_at_the_densest_interval_within_the_budget(cost: float, interval: int, busy_steps: int) -> None:
    captured = train(Cadence(), 2000, cost, busy_steps)
    assert set(gaps(captured, 5)) == {max(interval, busy_steps)}


def test_jitter_is_no_cost() -> None:
    cadence = Cadence()
    train(cadence, 1000, 0.1, jitter=0.02)
    assert cadence.interval_steps in (4, 5, 6)


def test_it_follows_a_cost_that_changes() -> None:
    cadence = Cadence(budget=0.1)
    train(cadence, 200, 0.0)
    assert cadence.interval_steps == 1
    captured = train(cadence, 2000, 1.0)
    assert set(gaps(captured, 5)) == {10}


def test_steps_that_take_no_time_and_costs_without_end_are_borne() -> None:
    cadence = Cadence()
    for _ in range(50):
        cadence.due(0.0, idle=True)
    assert cadence.interval_steps == 1
    cadence = Cadence()
    train(cadence, 40, 1e9)
    assert cadence.interval_steps == INTERVAL_STEPS_MAX
