"""How long steps took before a rank was behind. Pure.

Who becomes slow makes all steps longer. Where they take as long as ever, nobody has become slow, though one rank may
wait for the others no more: so it looks if a program sees to it that each of its steps lasts so long, and sleeps for
what is left of that. A rank that came late once, by a stall, a pause of its host or its start, comes as late in each
step from then on. The others wait for it, and sleep for that much less.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

STEPS = 64
"""So many of the last ones are kept."""


@dataclass(slots=True)
class Calm:
    """The last steps in which one rank was not behind."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))

    def longer_seconds(self, now: float) -> float:
        """By how much longer steps are that take so many seconds; all of it, if nothing is known.

        The shorter ones of before are what counts: jobs have long steps now and then.
        """
        return now - sorted(self.seconds)[len(self.seconds) // 4] if self.seconds else now
