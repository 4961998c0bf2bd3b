"""When a daemon gives way to training, and when it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.priority import AGAIN_SECONDS, HURRY_SECONDS, SEEN_SNAPSHOTS_MIN, Cost, Priority


class Kernel:
    """A clock, and what was set."""

    def __init__(self) -> None:
        self.now = self.used = 0.0
        self.busy = False
        self.set: list[bool] = []
        self.loop = Loop(lambda: self.now)
        self.priority = Priority(self.loop, self._set, lambda: self.used)
        self.priority.give_way()

    def _set(self, behind: bool) -> bool:
        if not self.busy:
            self.set.append(behind)
        return not self.busy

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.loop.turn()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.loop.close()


def test_it_gives_way_until_somebody_waits_and_again_soon_after(kernel: Kernel) -> None:
    kernel.sleep(100)
    assert kernel.set == [True]
    kernel.priority.hurry()
    assert kernel.set == [True, False]
    kernel.sleep(HURRY_SECONDS * 0.9)
    kernel.priority.hurry()
    kernel.sleep(HURRY_SECONDS * 0.9)
    assert kernel.set == [True, False]
    kernel.sleep(HURRY_SECONDS * 0.2)
    assert kernel.set == [True, False, True]
    kernel.sleep(100)
    assert kernel.set == [True, False, True]


def test_what_the_kernel_has_no_time_for_is_tried_again(kernel: Kernel) -> None:
    kernel.busy = True
    kernel.priority.hurry()
    kernel.priority.hurry()
    assert kernel.set == [True]
    kernel.busy = False
    kernel.priority.hurry()
    kernel.sleep(HURRY_SECONDS)
    kernel.busy = True
    kernel.priority.hurry()
    kernel.sleep(HURRY_SECONDS + 0.01)
    kernel.busy = False
    kernel.sleep(AGAIN_SECONDS + 0.01)
    assert kernel.set[-1] is True


def test_bulk_that_a_restore_waits_for_hurries_and_other_bulk_does_not() -> None:
    loop = Loop(lambda: 0.0)
    lines, said = Lines(loop, b"secret"), []
    lines.hurry = lambda: said.append(True)
    assert lines.may_send(said.clear, 1 << 20)
    assert said == []
    lines.set_urgent(said.clear, True)
    assert said == [True]
    lines.set_urgent(said.clear, False)
    assert said == [True]
    loop.close()


def train(kernel: Kernel, *, steps: range, step_seconds: float, cost_seconds: float) -> None:
    """A snapshot after each of these steps."""
    for version in steps:
        kernel.used += cost_seconds
        kernel.sleep(step_seconds)
        kernel.priority.begin_snapshot(version)


def test_it_stands_beside_training_while_snapshots_cost_little_of_a_step(kernel: Kernel) -> None:
    train(kernel, steps=range(20), step_seconds=0.05, cost_seconds=0.002)
    assert kernel.set == [True, False]
    kernel.priority.hurry()
    kernel.sleep(2 * HURRY_SECONDS)  # who stands beside does not give way when nobody waits any more
    assert kernel.set == [True, False]
    train(kernel, steps=range(20, 40), step_seconds=0.05, cost_seconds=0.02)
    assert kernel.set == [True, False, True]


def test_a_snapshot_that_costs_much_of_a_step_is_protected_behind_training_however_rare(kernel: Kernel) -> None:
    train(kernel, steps=range(0, 2000, 100), step_seconds=5.0, cost_seconds=0.02)
    assert kernel.set == [True]


def test_a_pause_between_steps_does_not_make_a_snapshot_light(kernel: Kernel) -> None:
    for first in range(0, 60, 6):
        train(kernel, steps=range(first, first + 6), step_seconds=0.05, cost_seconds=0.02)
        kernel.sleep(60)
    assert kernel.set == [True]


def test_nothing_is_known_of_the_first_snapshots_and_what_is_known_outlasts_a_recovery() -> None:
    cost, now = Cost(), 0.0
    for version in range(1 + SEEN_SNAPSHOTS_MIN):
        assert not cost.is_light
        cost.note(version, now := now + 0.05, 0.0)
    assert cost.is_light
    cost.note(SEEN_SNAPSHOTS_MIN, now := now + 1.0, 0.5)
    cost.note(SEEN_SNAPSHOTS_MIN + 1, now + 0.05, 0.502)
    assert cost.is_light


def test_one_slow_step_or_one_busy_moment_is_one_of_many() -> None:
    cost, now, used = Cost(), 0.0, 0.0
    for version in range(100):
        now, used = now + 0.1, used + 0.001 + 0.05 * (version == 50)
        cost.note(version, now, used)
        assert cost.is_light == (version >= SEEN_SNAPSHOTS_MIN)
