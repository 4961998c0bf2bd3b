"""The steps of one rank, from mark to mark: what each spent in which communicator. Pure.

An operation counts in the step in which it was entered. One that outlasts its step's mark is left out, and a step
of which a part was missed is not told.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from ftrain_launcher.detect.records import CollectivesStep, RankStep
from ftrain_launcher.rings.view import Mark


def spread(steps: list[RankStep], starved_seconds: float) -> list[RankStep]:
    """These steps, with what their rank has been starved in them: the most where it was on no processor for longest."""
    idle = [step.own_seconds - step.processor_seconds for step in steps]
    if starved_seconds == 0.0 or sum(idle) == 0.0:
        return steps
    share = min(1.0, starved_seconds / sum(idle))
    return [replace(step, starved_seconds=share * most) for step, most in zip(steps, idle, strict=True)]


def spread_throttled(steps: list[RankStep], throttled_seconds: float) -> list[RankStep]:
    """These steps, with what a quota has held their rank back in them: the most in the longest."""
    if throttled_seconds == 0.0 or not steps:
        return steps
    least = min(step.own_seconds for step in steps)
    above = sum(step.own_seconds - least for step in steps)
    share = min(1.0, throttled_seconds / above) if above > 0.0 else 0.0
    rest = max(0.0, throttled_seconds - above) / len(steps)
    held_back = (min(step.own_seconds, share * (step.own_seconds - least) + rest) for step in steps)
    return [replace(step, throttled_seconds=seconds) for step, seconds in zip(steps, held_back, strict=True)]


def spread_helpers(steps: list[RankStep], share: float) -> list[RankStep]:
    """These steps, in which one of their rank's helpers was starved for such a share of the time."""
    if share == 0.0:
        return steps
    rest = (max(0.0, step.own_seconds - step.processor_seconds - step.starved_seconds) for step in steps)
    return [replace(step, helpers_starved_seconds=share * idle) for step, idle in zip(steps, rest, strict=True)]


class _Sum:
    """The collectives of one communicator in the step at hand."""

    __slots__ = ("bytes", "least_ns", "most_bytes", "ns", "operations")

    def __init__(self) -> None:
        self.operations = self.bytes = self.ns = self.least_ns = 0
        self.most_bytes = -1


class StepLog:
    """Adds up the step at hand until its mark is given."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._sums: dict[int, _Sum] = {}
        self._last: Mark | None = None
        self._missed = False

    @property
    def head(self) -> int:
        """The newest operation of the last complete step."""
        return 0 if self._last is None else self._last.head

    def add(self, communicator: int, payload_bytes: int, ns: int) -> None:
        """A collective of the step at hand has taken this long. ``communicator``: as the worker counts them."""
        total = self._sums.get(communicator)
        if total is None:
            total = self._sums[communicator] = _Sum()
        total.operations += 1
        total.bytes += payload_bytes
        total.ns += ns
        if payload_bytes > total.most_bytes:
            total.most_bytes, total.least_ns = payload_bytes, ns
        elif payload_bytes == total.most_bytes and ns < total.least_ns:
            total.least_ns = ns

    def miss(self) -> None:
        """Operations of the step at hand were overwritten before they were seen."""
        self._missed = True

    def end_step(self, mark: Mark, index: Callable[[int], int | None]) -> RankStep | None:
        """The step at hand is complete; None: it is the first, or was not seen whole.

        Args:
            index: what to call a worker's communicator; None: leave it out.
        """
        last, sums, missed = self._last, self._sums, self._missed
        self._last, self._sums, self._missed = mark, {}, False
        if last is None or missed or mark.number != last.number + 1:
            return None
        collectives = tuple(
            CollectivesStep(known, total.operations, total.bytes, total.ns * 1e-9, total.least_ns * 1e-9)
            for communicator, total in sums.items()
            if (known := index(communicator)) is not None
        )
        seconds, waited = (mark.at_ns - last.at_ns) * 1e-9, (mark.waited_ns - last.waited_ns) * 1e-9
        own = max(0.0, min(seconds - waited, seconds))
        processor = (mark.processor_ns - last.processor_ns) * 1e-9
        return RankStep(self._rank, mark.step, seconds, own, collectives, max(0.0, min(processor, own)))
