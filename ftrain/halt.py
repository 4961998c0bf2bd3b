"""The planned stop, as a rank sees it: all ranks stop after one and the same step, with that step's snapshot sealed.

The agents first have all ranks *hold* at their next commit, and then say how far these had come. The controller names
the step after the farthest one. No rank can have passed it, for each writes down which step it commits before it looks
whether it is to hold; and they may be far apart, since they do not wait for each other where gradients accumulate. So
all go on to that step, capture it whatever is due, say so, and wait to be ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ftrain.link import Halted
from ftrain_snapshot.control import ControlPage, HaltMode

HOLD_SECONDS_MAX = 60.0
"""Longer than a network may be cut, and longer than an agent lives without a controller: nobody will say more."""
STAY_SECONDS_MAX = 120.0
"""Longer than it takes to wait for all others, and for the snapshot to be protected."""
_HOLD_POLL_SECONDS = 0.001
_STAY_POLL_SECONDS = 0.01


class Halt:
    """One rank's. ``tell`` takes what the agent is to hear."""

    def __init__(
        self,
        page: ControlPage,
        lane: int,
        tell: Callable[[Halted], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._page, self._lane, self._tell = page, lane, tell
        self._clock, self._pause = clock, pause

    def arrive(self, step: int) -> bool:
        """The first thing of a commit: whether all ranks stop after ``step``. Waits while that is being agreed on."""
        self._page.arrive(self._lane, step)
        mode, last = self._page.halt()
        if mode is HaltMode.HOLD:
            if not self._wait(lambda: self._page.halt()[0] is HaltMode.HOLD, HOLD_SECONDS_MAX, _HOLD_POLL_SECONDS):
                self._tell(Halted(step, False, time.time()))
            _, last = self._page.halt()
        return last == step

    def stay(self, step: int, *, sealed: bool) -> None:
        """The last thing of that commit: wait to be ended. Returns if this rank, or the job, goes on instead."""
        self._tell(Halted(step, sealed, time.time()))
        stays = (HaltMode.STAY, step)
        if sealed and not self._wait(lambda: self._page.halt() == stays, STAY_SECONDS_MAX, _STAY_POLL_SECONDS):
            self._tell(Halted(step, False, time.time()))

    def _wait(self, goes_on: Callable[[], bool], seconds_max: float, poll_seconds: float) -> bool:
        """The page is a word in shared memory, which nobody can be woken by. False: it was not over in time."""
        deadline = self._clock() + seconds_max
        while goes_on():
            if self._clock() >= deadline:
                return False
            self._pause(poll_seconds)
        return True
