"""Page's CUSUM of one rank's excess, in steps of a noisy machine. Pure.

Each step adds what exceeds the allowance, clipped, so that no single step counts much, and subtracts what falls short.
What changes much from step to step by itself is allowed more, and must add up to more. At the limit the last steps are
asked, too: their median must stand out of their spread (MAD).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

ALLOWED_JITTER = 0.6
"""Of what the excess changes from step to step: on a noisy machine more is nobody's fault."""
JITTER_CALM = 0.2
"""Of a machine whose ranks change more from step to step, neighbours also slow one down for some steps: it takes
longer to name a rank there."""
JITTER_STEPS = 64
JITTER_MAX = 0.5
SPREADS_MIN = 3.5
"""The median exceeds 0 by so many of its standard errors."""
WINDOW_STEPS = 20
_ERROR_OF_MEDIAN = 1.2533 * 1.4826 / WINDOW_STEPS**0.5
"""Standard error of the window's median, in units of its MAD."""


@dataclass(slots=True, kw_only=True)
class Cusum:
    """One sum."""

    allowance: float
    """Excess that is nobody's fault."""
    limit_calm: float
    """Of the sum, where there is no noise."""
    least: float
    """The median of the window, where the sum counts."""
    clip: float
    """What one step adds at most."""
    sum: float = 0.0
    since: int = 0
    """The step after which the sum was zero last."""
    seconds: float = 0.0
    """Since then."""
    window: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    _jitter: float = 0.0
    _steps: int = 0

    @property
    def limit(self) -> float:
        """At which the sum stops."""
        return self.limit_calm * max(1.0, self._jitter / JITTER_CALM)

    @property
    def stands_out(self) -> bool:
        """Whether the sum is at its limit, and the last steps agree."""
        if self.sum < self.limit:
            return False
        middle = median(self.window)
        spread = median(abs(excess - middle) for excess in self.window)
        return bool(middle >= max(self.least, SPREADS_MIN * _ERROR_OF_MEDIAN * spread))

    def notice(self, excess: float) -> None:
        """So much is the excess before anything explains it: how much it changes from step to step is noise."""
        if self.window:
            self._steps = min(self._steps + 1, JITTER_STEPS)
            self._jitter += (min(JITTER_MAX, abs(excess - self.window[-1])) - self._jitter) / self._steps

    def add(
        self, excess: float, step: int, seconds: float, *, leak: float = 0.0, allowance: float | None = None
    ) -> None:
        """A step of so many seconds. ``leak``: the share of the sum that it takes away.

        Args:
            allowance: fixed, instead of its own.
        """
        if self.sum == 0.0:
            self.since, self.seconds = step, 0.0
        self.seconds += seconds
        self.window.append(excess)
        if allowance is None:
            allowance = max(self.allowance, ALLOWED_JITTER * self._jitter)
        change = min(self.clip, max(-self.clip, excess - allowance))
        self.sum = min(self.limit, max(0.0, (1 - leak) * self.sum + change))
