"""When a daemon gives way to training, and when it does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.priority import AGAIN_SECONDS, HURRY_SECONDS, Priority


class Kernel:
    """A clock, and what was set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy = False
        self.set: list[bool] = []
        self.loop = Loop(lambda: self.now)
        self.priority = Priority(self.loop, self._set)
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
