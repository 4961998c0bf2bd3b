"""Steps of all ranks put side by side.

Ranks of several nodes come in different reports, at different times, and one node may say nothing at all. A step is
given out, in order, once all ranks that have a recorder have reported it, or when it has waited for the others for
long enough; then without those that are missing, about which nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ftrain_launcher.detect.records import Communicator, NodeReport, RankStep

PATIENCE_SECONDS = 2.0
"""Nodes report twice a second."""
PENDING_MAX = 4096
"""Steps that wait for others."""


class RankShare(NamedTuple):
    """A rank's part of a step."""

    step: RankStep
    communicators: list[int]
    """The job-wide number of each index in ``step``."""


class Step(NamedTuple):
    """One step, as far as it is known."""

    number: int
    shares: dict[int, RankShare]
    """By rank."""


class _Pending(NamedTuple):
    shares: dict[int, RankShare]
    first: float
    """When it was first reported."""


class Aligned:
    """The steps of one generation of so many ranks."""

    def __init__(self, ranks: int) -> None:
        self._world = ranks
        self.communicators: list[Communicator] = []
        """By job-wide number."""
        self._numbers: dict[tuple[str, int], int] = {}
        self._unrecorded: dict[str, int] = {}
        self._pending: dict[int, _Pending] = {}
        self._given = -1

    def numbers(self, report: NodeReport) -> list[int]:
        """The job-wide numbers of a report's communicators."""
        return [self._number(communicator) for communicator in report.communicators]

    def take(self, report: NodeReport, numbers: list[int], now: float) -> Iterator[Step]:
        """Take a report with the `numbers` of its communicators; the steps that are complete by it, oldest first."""
        self._unrecorded[report.node] = len(report.unrecorded)
        for step in report.steps:
            if step.step > self._given:
                pending = self._pending.get(step.step)
                if pending is None:
                    pending = self._pending[step.step] = _Pending({}, now)
                pending.shares[step.rank] = RankShare(step, numbers)
        return self._ripe(now)

    def _number(self, communicator: Communicator) -> int:
        # Groups of one name are disjoint, so the first member tells them apart; a hash of all would be slow.
        key = (communicator.name, communicator.members[0] if communicator.members else -1)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.communicators)
            self.communicators.append(communicator)
        return number

    def _ripe(self, now: float) -> Iterator[Step]:
        known = self._world - sum(self._unrecorded.values())
        for number in sorted(self._pending):
            pending = self._pending[number]
            full = len(pending.shares) >= known
            if not full and now < pending.first + PATIENCE_SECONDS and len(self._pending) <= PENDING_MAX:
                return
            del self._pending[number]
            self._given = number
            yield Step(number, pending.shares)
