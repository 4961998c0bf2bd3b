"""Pure: where communication is slow, and between which nodes links should be probed.

How long the last member to enter a collective stays in it is what the network needs; whoever waits for a slow rank
entered before it. For each communicator and size this *transfer* is compared with its own earlier one. If it is much
longer, step after step, probes between the nodes are asked for: they tell a slow link from processors that are busy
(`links.judge_matrix`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from ftrain_launcher.detect.aligned import Step
from ftrain_launcher.detect.records import Communicator

BASE_STEPS = 20
"""A communicator's usual transfer is the median of so many."""
STEPS_SKIPPED = 3
FACTOR_MIN = 2.0
EXCESS_SECONDS_MIN = 0.005
WINDOW_STEPS = 12
RAISED_MIN = 9
"""Of the window's steps."""
ASK_AGAIN_STEPS = 100
_BASE_DRIFT = 0.002
"""So much a step the usual transfer follows the present one while that is not raised."""


class Slowed(NamedTuple):
    """A communicator whose transfers take longer than they used to."""

    communicator: Communicator
    step: int
    seconds: float
    """The median of the last transfers."""
    usual_seconds: float

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"operations of '{self.communicator.name}' take {self.seconds * 1000:.1f} ms from the last entry, "
            f"{self.seconds / self.usual_seconds:.1f} times the usual {self.usual_seconds * 1000:.1f}"
        )


@dataclass(slots=True)
class _Class:
    """Operations of one communicator and about one size."""

    firsts: list[float] = field(default_factory=list)
    skipped: int = 0
    usual: float = 0.0
    window: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    asked: int | None = None

    def take(self, transfer: float, step: int) -> bool:
        """Whether probes are to be asked for."""
        if self.skipped < STEPS_SKIPPED:
            self.skipped += 1
            return False
        if len(self.firsts) < BASE_STEPS:
            self.firsts.append(transfer)
            self.usual = median(self.firsts)
            return False
        self.window.append(transfer)
        if not self._is_raised(transfer):
            self.usual *= 1 + (_BASE_DRIFT if transfer > self.usual else -_BASE_DRIFT)
            return False
        if sum(map(self._is_raised, self.window)) < RAISED_MIN:
            return False
        if self.asked is not None and step < self.asked + ASK_AGAIN_STEPS:
            return False
        self.asked = step
        return True

    def _is_raised(self, transfer: float) -> bool:
        return transfer >= FACTOR_MIN * self.usual and transfer >= self.usual + EXCESS_SECONDS_MIN


class SlowLinks:
    """The transfers of one generation. Give it each step that `Aligned` gives out, in order."""

    def __init__(self, communicators: list[Communicator]) -> None:
        self._communicators = communicators
        self._classes: dict[tuple[int, int], _Class] = {}

    def take(self, step: Step) -> list[Slowed]:
        """The communicators that call for probes now."""
        transfers: dict[tuple[int, int], float] = {}
        seen: dict[tuple[int, int], int] = {}
        for share in step.shares.values():
            for collectives in share.step.collectives:
                size = (collectives.bytes // max(1, collectives.operations)).bit_length()
                key = share.communicators[collectives.communicator], size
                least = collectives.least_seconds
                if least < transfers.get(key, float("inf")):
                    transfers[key] = least
                seen[key] = seen.get(key, 0) + 1
        slowed = []
        for key, transfer in transfers.items():
            communicator = self._communicators[key[0]]
            if seen[key] < len(communicator.members) or len(communicator.members) < 2:
                continue  # the one that is missing may have entered last
            found = self._classes.setdefault(key, _Class())
            if found.take(transfer, step.number):
                slowed.append(Slowed(communicator, step.number, median(found.window), found.usual))
        return slowed
