"""How long a rank computes in a step, whatever it spends in communication.

A blocking operation is easy: what is outside of all operations is computation. An asynchronous one (DDP's buckets)
covers computation, and all the more on a rank that waits for another: its time outside of operations shrinks to
little, and a slow rank would look ten times slower than it is. Nothing in a record says whether anybody waited. But
step times do: if an operation blocks, a second of waiting for the last member makes the step a second longer; if a
delay shows in each of n buckets that are under way, it adds up to n seconds and costs the step one.

So for each class of communicators (size, operations in a step) the *cost* is estimated: by how much steps are longer
when its members wait longer for each other. It settles whether waiting counts in full, or as what is left of it when
computation is taken off.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from statistics import median
from typing import NamedTuple

from ftrain_launcher.detect.aligned import RankShare, Step
from ftrain_launcher.detect.records import CollectivesStep, Communicator

STEPS_FIRST = 10
"""Before so many steps nothing is said of a communicator with several operations in a step."""
_SETTLED_OPERATIONS_MIN = 4
"""With fewer, the two cases hardly differ in cost."""
_WINDOW_STEPS = 40
_ESTIMATE_EVERY = 8
_COVERS_TO = 0.45
_BLOCKS_FROM = 0.8
_VARIED_MIN = 0.02
"""Of the step time: where members' waiting varies less, it shows no cost."""
_DOUBT = 0.2
"""Of the waiting in operations that cover computation: it is only estimated."""
_DOUBT_UNSETTLED = 1.1
"""Of the difference between the two cases."""


class OwnTime(NamedTuple):
    """Of a rank in a step, in seconds."""

    seconds: float
    doubt: float
    """So much of it may be an error; more, the longer it waited."""


class _Kind(Enum):
    BLOCKS = 1
    COVERS = 2
    UNSETTLED = 3


_Class = tuple[int, int]
"""Members, operations in a step."""


@dataclass
class _Cost:
    """What waiting in one class of communicators costs."""

    seen: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW_STEPS))
    """Waiting, step time; of the last steps, in seconds."""
    count: int = 0
    overlaps: bool = False
    """Its operations have lasted longer than all communication: they were under way at the same time."""
    cost: float | None = None
    varied: float = 0.0
    """How much the waiting varied where the cost was seen."""

    def take(self, waited: float, seconds: float) -> None:
        self.seen.append((waited, seconds))
        self.count += 1
        if self.count == STEPS_FIRST or (self.count > STEPS_FIRST and self.count % _ESTIMATE_EVERY == 0):
            self._estimate()

    def _estimate(self) -> None:
        seen = sorted(self.seen)
        half = len(seen) // 2
        low, high = seen[:half], seen[-half:]
        varied = median(w for w, _ in high) - median(w for w, _ in low)
        if varied < _VARIED_MIN * median(s for _, s in seen):
            return
        cost = (median(s for _, s in high) - median(s for _, s in low)) / varied
        cost = min(max(cost, 0.0), 1.5)
        # What varies more shows it better: an onset of slowness corrects what was guessed from noise.
        gain = 1.0 if self.cost is None else max(0.25, varied / (varied + 3 * self.varied))
        self.cost = (self.cost or 0.0) + gain * (cost - (self.cost or 0.0))
        self.varied = max(varied, 0.9 * self.varied)

    def kind(self, operations: int) -> _Kind:
        if self.cost is None or operations < _SETTLED_OPERATIONS_MIN:
            return _Kind.UNSETTLED
        if self.cost < _COVERS_TO:
            return _Kind.COVERS
        return _Kind.BLOCKS if self.cost >= _BLOCKS_FROM and not self.overlaps else _Kind.UNSETTLED


class OwnTimes:
    """Knows how much of the ranks' communication covers computation."""

    def __init__(self, communicators: list[Communicator]) -> None:
        self._communicators = communicators
        self._costs: dict[_Class, _Cost] = defaultdict(_Cost)

    def learn(self, step: Step) -> bool:
        """Learn from a step. False: too few have been seen to say anything."""
        waited: dict[_Class, float] = defaultdict(float)
        for share in step.shares.values():
            inside = 1.02 * (share.step.seconds - share.step.outside_seconds)
            for collectives in share.step.collectives:
                if collectives.operations > 1:
                    key = self._class(share, collectives)
                    waited[key] += collectives.seconds
                    if collectives.seconds > inside:
                        self._costs[key].overlaps = True
        seconds, ranks = median(share.step.seconds for share in step.shares.values()), len(step.shares)
        for key, wait in waited.items():
            self._costs[key].take(wait / ranks, seconds)
        return all(self._costs[key].count >= STEPS_FIRST for key in waited)

    def of(self, step: Step) -> dict[int, OwnTime]:
        """The ranks' own times in a step."""
        least: dict[int, float] = {}
        for share in step.shares.values():
            for collectives in share.step.collectives:
                if collectives.operations > 1:
                    number = share.communicators[collectives.communicator]
                    if collectives.seconds < least.get(number, inf):
                        least[number] = collectives.seconds
        return {rank: self._of(share, least) for rank, share in step.shares.items()}

    def _of(self, share: RankShare, least: dict[int, float]) -> OwnTime:
        step, doubt = share.step, 0.0
        inside = step.seconds - step.outside_seconds
        covering: list[tuple[float, float]] = []
        for collectives in step.collectives:
            operations, seconds = collectives.operations, collectives.seconds
            if operations > 1:
                # A lag grows evenly, and the last one counts; a third is there when the first third, forward, is over.
                weight = 3 / (2 * operations + 1)
                waited = seconds - least[share.communicators[collectives.communicator]]
                kind = self._costs[self._class(share, collectives)].kind(operations)
                if kind is _Kind.COVERS:
                    covering.append((seconds, weight))
                    doubt += _DOUBT * weight * waited
                    continue
                if kind is _Kind.UNSETTLED:
                    doubt += _DOUBT_UNSETTLED * (1 - weight) * waited
            inside -= seconds
        # What is covered is inside of operations, and yet no waiting; blocking ones lie within the others.
        covered = sum(max(0.0, min(seconds, inside) - weight * seconds) for seconds, weight in covering)
        return OwnTime(step.outside_seconds + covered, doubt)

    def _class(self, share: RankShare, collectives: CollectivesStep) -> _Class:
        return len(self._communicators[share.communicators[collectives.communicator]].members), collectives.operations
