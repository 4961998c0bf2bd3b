"""Pure: which rank is slow outside of communication.

Who is slow makes the others wait, and hardly waits itself; since all take equally long for a step, its own time (in
which it does not wait for operations) exceeds that of its peers by what they wait. A rank that comes late only because
it waited for another elsewhere has the own time of its peers, and is not blamed. No clocks are compared: durations are
enough.

Each step gives each rank a ratio: its own time over the median of its peers of the same role (`roles`). A rank
without any (a stage of a pipeline) is compared with its own earlier time, as the other ranks without peers are with
theirs, so that what slows down all is no fault. Time in which others used the rank's processor explains its excess as
far as it goes beyond what its peers are kept waiting for so much use of one (`rings.starvation`); the peers' times stay
as they are, so that nobody looks slow beside a starved rank. That count is of the thread that trains, and where a
machine is crowded that thread waits for others, too, which wait for a processor (helpers, loaders, the kernel's). So
there what a rank is behind, and has neither computed nor been held back by a quota, must last.

The ratios' excess is summed up (Page's CUSUM): each step adds what exceeds the allowance, clipped, so that no single
step counts much, and subtracts what falls short. At the limit the rank is named, if the median of its last ratios
exceeds the allowance and stands out of their spread (MAD); at zero it is quiet again. C4 (arXiv 2406.04594)
for the idea that the one who waits least is the slow one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import msgspec

from ftrain_launcher.detect.aligned import Step
from ftrain_launcher.detect.quotas import Quotas
from ftrain_launcher.detect.records import Communicator, NodeReport
from ftrain_launcher.detect.roles import Roles
from ftrain_launcher.detect.verdict import Kind, Verdict

ALLOWANCE = 0.1
"""Excess that is nobody's fault."""
ALLOWED_JITTER = 0.6
"""Of what the ratio changes from step to step: on a noisy machine more is nobody's fault."""
JITTER_CALM = 0.2
"""Of a machine whose ranks change more from step to step, neighbours also slow one down for some steps: it takes
longer to name a rank there."""
JITTER_STEPS = 64
JITTER_MAX = 0.5
CLIP = 0.15
"""What one step adds at most."""
LIMIT = 1.8
"""Excess of 0.5 in each step: 12 steps; of 0.2: 18, and 25 with noise of a tenth."""
QUOTA_LEAK = 0.02
"""The share of the sum that each step of a rank under a quota takes away: one that binds now and then, for hardly more
than is allowed, does not add up over hundreds of steps."""
RATIO_MIN = 1.12
"""The median of the window, of a rank that is named."""
SPREADS_MIN = 3.5
"""It exceeds 1 by so many of its standard errors."""
QUIET = 0.05
"""The excess below which a named rank recovers."""
WINDOW_STEPS = 20
STEPS_SKIPPED = 3
"""At the beginning: compilation, first touches, caches."""
CROWDED = 0.1
"""The share of their own time that ranks wait for processors which others use, from which on a machine is crowded."""
_CROWDED_SECONDS = 2.0
"""Over about this long."""
BLOCKED_SECONDS_MIN = 1.5
"""So long must a rank be behind on a crowded machine that has not computed for longer than its peers: what happens to
the helpers of one rank alone is shorter. Twenty steps of a twentieth of a second, each by half too long."""
EXCESS_SECONDS_MIN = 0.0005
EXCESS_OF_STEP_MIN = 0.02
"""An excess below that of the step time slows nobody down."""
BASE_STEPS = 30
"""A rank without peers is compared with the median of its first ones."""
_BASE_DRIFT = 0.0005
"""So much a step its own earlier time follows it."""
_ERROR_OF_MEDIAN = 1.2533 * 1.4826 / WINDOW_STEPS**0.5
"""Standard error of the window's median, in units of its MAD."""


class Change(msgspec.Struct, frozen=True):
    """What a step has changed; each is told once."""

    named: tuple[Verdict, ...] = ()
    gone: tuple[int, ...] = ()
    """Ranks that were named, and are as quick as their peers again."""


class _Ratio(NamedTuple):
    """One rank in one step."""

    rank: int
    ratio: float
    own: float
    reference: float
    """The own time of its peers; of a rank without any, its own earlier one."""
    peers: int
    starved: float
    """How long it waited for a processor, beyond its peers."""
    computed: float
    """How much longer than its peers it was on a processor; 0: nothing is known of it."""

    def without_starvation(self) -> _Ratio:
        """Without what waiting for a processor explains of its excess."""
        own = max(self.own - self.starved, min(self.own, self.reference))
        return self._replace(ratio=own / self.reference, own=own)


class _Seen(NamedTuple):
    own: float
    reference: float
    inside: float
    """In communication."""
    computed: float
    """How much longer than its peers it was on a processor."""


@dataclass(slots=True)
class _Rank:
    jitter: float = 0.0
    """How much its ratio changes from step to step."""
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    seen: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    sum: float = 0.0
    since: int = 0
    seconds: float = 0.0
    """Since ``since``, the step after which the sum was zero last."""
    named: bool = False
    base: float | None = None
    firsts: list[float] = field(default_factory=list)
    steps: int = 0

    @property
    def limit(self) -> float:
        """Of the sum, at which it is named."""
        return LIMIT * max(1.0, self.jitter / JITTER_CALM)

    def take(self, found: _Ratio, inside: float, least: float, leak: float) -> _Ratio:
        """Add a step to the sum, and tell it without starvation. ``least``: less seconds are no excess."""
        if self.ratios:
            self.steps = min(self.steps + 1, JITTER_STEPS)
            self.jitter += (min(JITTER_MAX, abs(found.ratio - self.ratios[-1])) - self.jitter) / self.steps
        found = found.without_starvation()
        self.ratios.append(found.ratio)
        self.seen.append(_Seen(found.own, found.reference, inside, found.computed))
        excess = found.ratio - 1 if found.own - found.reference >= least else min(0.0, found.ratio - 1)
        excess -= QUIET if self.named else max(ALLOWANCE, ALLOWED_JITTER * self.jitter)
        kept = self.sum if self.named else (1 - leak) * self.sum
        self.sum = min(self.limit, max(0.0, kept + min(CLIP, max(-CLIP, excess))))
        return found

    @property
    def computes_longer(self) -> bool:
        """Whether it was on a processor for half of what it takes longer, or more."""
        behind = median(seen.own for seen in self.seen) - median(seen.reference for seen in self.seen)
        return 2 * median(seen.computed for seen in self.seen) >= behind


class SlowRanks:
    """The slow ranks of one generation. Give it each step that `Aligned` gives out, in order."""

    def __init__(self, generation: int, nodes: Mapping[int, str], communicators: list[Communicator]) -> None:
        self._generation, self._nodes = generation, nodes
        self._roles = Roles(communicators)
        self._quotas = Quotas()
        self._ranks: dict[int, _Rank] = {}
        self._skipped = 0
        self._crowd, self._seconds = 0.0, 0.0
        """The share of its own time that a rank waited for processors lately; how long steps have been judged."""

    @property
    def named(self) -> list[int]:
        """Those that are slow now."""
        return [rank for rank, state in self._ranks.items() if state.named]

    def learn(self, report: NodeReport, numbers: list[int]) -> None:
        """See who talks to whom; ``numbers`` are the job-wide ones of the report's communicators."""
        self._roles.take(report, numbers)

    def take(self, step: Step) -> Change:
        """Judge a step."""
        if self._skipped < STEPS_SKIPPED:
            self._skipped += 1
            return Change()
        named: list[Verdict] = []
        gone: list[int] = []
        own = self._quotas.level({rank: share.step for rank, share in step.shares.items()})
        typical = median(share.step.seconds for share in step.shares.values())
        least = max(EXCESS_SECONDS_MIN, EXCESS_OF_STEP_MIN * typical)
        self._follow_crowd(step, typical)
        for found in self._ratios(own, step):
            state = self._ranks[found.rank]
            share = step.shares[found.rank].step
            if state.sum == 0.0:
                state.since, state.seconds = step.number, 0.0
            state.seconds += share.seconds
            leak = QUOTA_LEAK if self._quotas.holds(found.rank) else 0.0
            found = state.take(found, share.seconds - share.own_seconds, least, leak)
            if state.named:
                if state.sum == 0.0:
                    state.named = False
                    gone.append(found.rank)
            elif state.sum >= state.limit and _stands_out(state.ratios) and self._lasts(found.rank, state):
                state.named = True
                named.append(self._verdict(found, state, step.number))
        return Change(tuple(named), tuple(gone))

    def _follow_crowd(self, step: Step, seconds: float) -> None:
        own = sum(share.step.own_seconds for share in step.shares.values())
        starved = sum(share.step.starved_seconds for share in step.shares.values())
        if own > 0.0:
            self._seconds = min(_CROWDED_SECONDS, self._seconds + seconds)
            self._crowd += min(1.0, seconds / self._seconds) * (starved / own - self._crowd)

    def _lasts(self, rank: int, state: _Rank) -> bool:
        """Whether what a rank is behind is more than a moment of a crowded machine."""
        shown = self._crowd < CROWDED or state.computes_longer or self._quotas.holds(rank)
        return shown or state.seconds >= BLOCKED_SECONDS_MIN

    def _ratios(self, own: dict[int, float], step: Step) -> Iterator[_Ratio]:
        """Each rank of the step, over its reference; none for those of which nothing can be said."""
        grouped: set[int] = set()
        for group in self._roles.groups():
            grouped.update(group)
            ranks = [rank for rank in group if rank in own]
            if len(ranks) > 1:
                yield from self._among(ranks, own, step)
        alone: dict[int, float] = {}
        for rank, seconds in own.items():
            state = self._state(rank)
            if rank not in grouped and (base := _follow(state, seconds)) is not None:
                alone[rank] = seconds / base
        if len(alone) > 1:
            for found in self._among(list(alone), alone, step):
                rank, base = found.rank, self._ranks[found.rank].base or 0.0
                yield found._replace(own=own[rank], reference=base * found.reference, peers=0, computed=0.0)

    def _among(self, ranks: list[int], values: dict[int, float], step: Step) -> Iterator[_Ratio]:
        others = _Others(sorted(values[rank] for rank in ranks))
        shares = [step.shares[rank].step for rank in ranks]
        others_starved = _Others(sorted(share.starved_seconds for share in shares))
        others_used = _Others(sorted(share.processor_seconds for share in shares))
        for rank in ranks:
            value = values[rank]
            reference = others.median(value)
            if reference > 0.0:
                self._state(rank)
                share = step.shares[rank].step
                used = others_used.median(share.processor_seconds)
                more = max(1.0, share.processor_seconds / used) if used > 0.0 else 1.0
                beyond = max(0.0, share.starved_seconds - more * others_starved.median(share.starved_seconds))
                computed = share.processor_seconds - used
                yield _Ratio(rank, value / reference, value, reference, len(ranks) - 1, beyond, computed)

    def _state(self, rank: int) -> _Rank:
        state = self._ranks.get(rank)
        if state is None:
            state = self._ranks[rank] = _Rank()
        return state

    def _verdict(self, found: _Ratio, state: _Rank, step: int) -> Verdict:
        ratio = median(state.ratios)
        own, theirs, inside, _ = (median(values) for values in zip(*state.seen, strict=True))
        node = self._nodes.get(found.rank, "")
        peers = f"its {found.peers} peers'" if found.peers > 1 else "its peer's"
        than = f"{peers} own time" if found.peers else "its own time of earlier steps"
        return Verdict(
            kind=Kind.SLOW,
            generation=self._generation,
            ranks=(found.rank,),
            confidence=(0.95 if ratio >= 1.3 else 0.8) - (0.0 if found.peers else 0.15),
            sentence=f"rank {found.rank} on {node} is slow: it takes {ratio:.2f} times {than}, {_ms(own)} ms "
            f"a step and not {_ms(theirs)}, since step {state.since}; it waits for others for {_ms(inside)} ms a step",
            seconds=state.seconds,
            step=step,
            details={
                "node": node,
                "ratio": f"{ratio:.3f}",
                "own_seconds": f"{own:.6f}",
                "reference_seconds": f"{theirs:.6f}",
                "communication_seconds": f"{inside:.6f}",
                "peers": str(found.peers),
                "since_step": str(state.since),
            },
        )


class _Others:
    """The median of all values of a group but one."""

    def __init__(self, ordered: list[float]) -> None:
        self._ordered, self._middle = ordered, len(ordered) // 2

    def median(self, but: float) -> float:
        ordered, middle = self._ordered, self._middle
        if len(ordered) % 2 == 0:
            return ordered[middle] if but <= ordered[middle - 1] else ordered[middle - 1]
        if but < ordered[middle]:
            return (ordered[middle] + ordered[middle + 1]) / 2
        if but > ordered[middle]:
            return (ordered[middle - 1] + ordered[middle]) / 2
        return (ordered[middle - 1] + ordered[middle + 1]) / 2


def _follow(state: _Rank, own: float) -> float | None:
    """The earlier time of a rank without peers, which follows slow drifts; None: not yet known, or nothing."""
    if state.base is None:
        state.firsts.append(own)
        if len(state.firsts) == BASE_STEPS:
            state.base = median(state.firsts)
        return None
    if not state.named:
        state.base *= 1 + (_BASE_DRIFT if own > state.base else -_BASE_DRIFT)
    return state.base or None


def _stands_out(ratios: deque[float]) -> bool:
    middle = median(ratios)
    spread = median(abs(ratio - middle) for ratio in ratios)
    return bool(middle >= max(RATIO_MIN, 1 + SPREADS_MIN * _ERROR_OF_MEDIAN * spread))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
