"""Pure: where communication is slow, and between which nodes links should be probed.

How long the last member to enter a collective stays in it is what the network needs; whoever waits for a slow rank
entered before it. For each communicator and size this *transfer* is compared with its own earlier one. What it takes
beyond that is summed up over the steps (CUSUM): a slower link makes each transfer longer. One that loses segments makes
some of them much longer (TCP waits 200 ms and more before it sends again), and these are counted. Where either has
grown, probes between the nodes are asked for, ever more seldom while it stays so: they tell a bad link from processors
that are busy (`links.judge_matrix`). To ask costs little; it accuses nobody.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from ftrain_launcher.detect.aligned import Step
from ftrain_launcher.detect.asking import Asking
from ftrain_launcher.detect.records import Communicator
from ftrain_launcher.detect.wording import group

BASE_STEPS = 20
"""A communicator's usual transfer is the median of so many."""
STEPS_SKIPPED = 3
EXCESS_FACTOR_MIN, EXCESS_SECONDS_MIN = 1.5, 0.005
"""Only what is longer than so many times the usual transfer, and than that and so much more, is excess."""
ASK_TRANSFERS, ASK_SECONDS_MIN = 10.0, 0.1
"""So many usual transfers of excess, and so many seconds, are asked about."""
STEP_SHARE_MAX = 0.5
"""Of that, what one step may add."""
SPIKE_FACTOR_MIN, SPIKE_SECONDS_MIN = 4.0, 0.15
"""So many times the usual transfer, and so much more than that, is a spike."""
SPIKES_MIN, SPIKES_STEPS = 2, 100
"""So many within so many steps are asked about."""
_BASE_DRIFT = 0.002
"""So much a step the usual transfer follows the present one while that has no excess."""


class Slowed(NamedTuple):
    """A communicator whose transfers take longer than they used to."""

    communicator: Communicator
    step: int
    seconds: float
    """The longest transfer since it was last told."""
    usual_seconds: float

    @property
    def sentence(self) -> str:
        """For people."""
        return (
            f"operations of {group(self.communicator)} take up to {self.seconds * 1000:.1f} ms from the last entry, "
            f"and usually {self.usual_seconds * 1000:.1f}"
        )


@dataclass(slots=True)
class _Class:
    """Operations of one communicator and about one size."""

    firsts: list[float] = field(default_factory=list)
    skipped: int = 0
    usual: float = 0.0
    excess: float = 0.0
    """The sum, in seconds; it sinks while transfers are as usual."""
    steps: int = 0
    spikes: deque[int] = field(default_factory=lambda: deque(maxlen=SPIKES_MIN))
    """The last of them, by ``steps``."""
    longest: float = 0.0
    """Since it was last asked."""

    def take(self, transfer: float) -> bool:
        """Whether probes are wanted."""
        if self.skipped < STEPS_SKIPPED:
            self.skipped += 1
            return False
        if len(self.firsts) < BASE_STEPS:
            self.firsts.append(transfer)
            self.usual = median(self.firsts)
            return False
        enough = max(ASK_TRANSFERS * self.usual, ASK_SECONDS_MIN)
        excess = transfer - max(EXCESS_FACTOR_MIN * self.usual, self.usual + EXCESS_SECONDS_MIN)
        self.excess = min(2 * enough, max(0.0, self.excess + min(excess, STEP_SHARE_MAX * enough)))
        self.longest = max(self.longest, transfer)
        self.steps += 1
        if transfer >= max(SPIKE_FACTOR_MIN * self.usual, self.usual + SPIKE_SECONDS_MIN):
            self.spikes.append(self.steps)
        if excess < 0:
            self.usual *= 1 + (_BASE_DRIFT if transfer > self.usual else -_BASE_DRIFT)
        spiky = len(self.spikes) == SPIKES_MIN and self.steps - self.spikes[0] < SPIKES_STEPS
        return spiky or self.excess > enough


class SlowLinks:
    """The transfers of one generation. Give it each step that `Aligned` gives out, in order."""

    def __init__(self, communicators: list[Communicator]) -> None:
        self._communicators = communicators
        self._classes: dict[tuple[int, int], _Class] = {}
        self._asking = Asking()

    def take(self, step: Step, now: float) -> list[Slowed]:
        """The communicators that call for probes now; ``now`` in seconds, of any one clock."""
        slowed: dict[int, Slowed] = {}
        for (number, size), transfer in self._transfers(step).items():
            found = self._classes.setdefault((number, size), _Class())
            if found.take(transfer) and number not in slowed and self._asking.may(number, now):
                slowed[number] = Slowed(self._communicators[number], step.number, found.longest, found.usual)
                found.longest = 0.0
        return list(slowed.values())

    def _transfers(self, step: Step) -> dict[tuple[int, int], float]:
        """By communicator and size, where all its members tell: the one that is missing may have entered last."""
        transfers: dict[tuple[int, int], float] = {}
        seen: dict[tuple[int, int], int] = {}
        for share in step.shares.values():
            for collectives in share.step.collectives:
                size = (collectives.bytes // max(1, collectives.operations)).bit_length()
                key = share.communicators[collectives.communicator], size
                transfers[key] = min(collectives.least_seconds, transfers.get(key, float("inf")))
                seen[key] = seen.get(key, 0) + 1
        return {
            key: seconds
            for key, seconds in transfers.items()
            if seen[key] >= max(2, len(self._communicators[key[0]].members))
        }
