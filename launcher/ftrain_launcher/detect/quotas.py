"""Own times of ranks as if a quota held them back evenly.

A quota of processor time is of periods, of a tenth of a second mostly: once it is used up, the rank stands still until
the next. Where steps are shorter, most of them are as quick as ever, and a few take several times as long: in the
judge's eyes stalls, as they happen to anybody (`slow`). What the kernel counts of it tells them apart, so it is taken
out of the steps in which it happened and put back as a moving mean; or as it was, where it is in one step after the
other, which are longer than the quota's periods. Where most ranks are held back that is left out: a quota that all have
is nobody's fault, and to spread each stall that it prolongs would make it look like a habit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ftrain_launcher.detect.records import RankStep

_WEIGHT, _WEIGHT_LONG = 1 / 6, 1 / 256
"""Of the newest step in the means."""
_TIMES_USUAL = 3.0
"""So much more than usual is a rank held back whose quota is its own."""


@dataclass(slots=True)
class _HeldBack:
    """Seconds a step in which a rank was held back."""

    lately: float = 0.0
    long: float = 0.0
    even: float = 0.0
    """What counts in the newest step: in steps that are longer than the quota's periods, at once what it was."""
    _last: float = 0.0

    def take(self, seconds: float) -> None:
        self.lately += _WEIGHT * (seconds - self.lately)
        self.long += _WEIGHT_LONG * (seconds - self.long)
        self.even = max(self.lately, min(seconds, self._last))
        self._last = seconds


class Quotas:
    """One generation's."""

    def __init__(self) -> None:
        self._ranks: dict[int, _HeldBack] = {}
        """Only those that were ever held back."""

    def level(self, steps: Mapping[int, RankStep]) -> tuple[dict[int, float], dict[int, float]]:
        """The own times of one step, by rank, and what of them counts as held back."""
        own = {rank: step.own_seconds for rank, step in steps.items()}
        counted: dict[int, float] = {}
        for rank, step in steps.items():
            if step.throttled_seconds > 0.0 or rank in self._ranks:
                self._ranks.setdefault(rank, _HeldBack()).take(step.throttled_seconds)
        usual = self._usual(len(steps))
        for rank, held_back in self._ranks.items():
            if rank in own and held_back.long > _TIMES_USUAL * usual:
                counted[rank] = held_back.even
                own[rank] += held_back.even - steps[rank].throttled_seconds
        return own, counted

    def holds(self, rank: int) -> bool:
        """Whether a rank was ever held back."""
        return rank in self._ranks

    def _usual(self, ranks: int) -> float:
        """The mean of the middle one of so many ranks; of two, the lesser."""
        above = len(self._ranks) - ranks + (ranks - 1) // 2
        return sorted(held_back.long for held_back in self._ranks.values())[above] if above >= 0 else 0.0
