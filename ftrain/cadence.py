"""Pure: how often to take a snapshot, when the user leaves it open (``--snapshot-every auto``; DESIGN 5, Backpressure).

A snapshot's cost is what its steps take longer than *quiet* ones, steps during which no snapshot is copied, coded or
sent: it so holds the stall, the memory traffic and the cores that daemons take away. The interval is the smallest at
which that cost, spread over the steps between two snapshots, stays under the budget; CheckFreq (FAST '21) settles its
interval in the same way. The first snapshots have a quiet step after each, to learn both.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

WARM_STEPS = 3
"""Steps that are not counted: they make memory, and tune kernels."""
SAMPLES_MIN = 4
SAMPLES_MAX = 32
QUIET_EVERY_STEPS = 64
"""However cheap snapshots are, one step in so many stays quiet, to compare with."""
INTERVAL_STEPS_MAX = 10_000


class Cadence:
    """Asked at every commit, by rank 0 alone. ``budget``: the cost that is allowed, as a share of the step time."""

    def __init__(self, budget: float = 0.02) -> None:
        self._budget = budget
        self._quiet: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._costs: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._cycle: list[float] = []
        """The steps since the last snapshot that were not quiet."""
        self._step_is_quiet = True
        self._asked: float | None = None
        self._warm_steps = 0
        self._since_quiet = self._since_snapshot = 0

    def due(self, now: float, *, idle: bool) -> bool:
        """A step ended ``now`` (seconds, any clock): is it to be captured? ``idle``: no snapshot is under way."""
        self._note(now)
        wanted = idle and self._is_time()
        if wanted:
            self._close_cycle()
        self._step_is_quiet = idle and not wanted
        return wanted

    @property
    def interval_steps(self) -> int | None:
        """Steps from one snapshot to the next; None: not known yet."""
        if len(self._quiet) < SAMPLES_MIN or len(self._costs) < SAMPLES_MIN:
            return None
        allowed = self._budget * median(self._quiet)
        needed = median(self._costs) / allowed if allowed > 0 else 1.0
        return max(1, math.ceil(min(needed, INTERVAL_STEPS_MAX)))

    def _note(self, now: float) -> None:
        seconds = None if self._asked is None else now - self._asked
        self._asked = now
        self._since_snapshot += 1
        self._since_quiet = 0 if self._step_is_quiet else self._since_quiet + 1
        self._warm_steps += 1
        if seconds is None or self._warm_steps <= WARM_STEPS:
            return
        (self._quiet if self._step_is_quiet else self._cycle).append(seconds)

    def _is_time(self) -> bool:
        interval = self.interval_steps
        if interval is None:
            return self._step_is_quiet
        return self._since_snapshot >= interval and self._since_quiet < QUIET_EVERY_STEPS

    def _close_cycle(self) -> None:
        if self._cycle and self._quiet:
            usual = median(self._quiet)
            self._costs.append(max(0.0, sum(seconds - usual for seconds in self._cycle)))
        self._cycle = []
        self._since_snapshot = 0
