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
there what a rank is behind, and has neither computed nor been held back by a quota, must last. Nor is the same work
always the same processor time there: beside processes that take its cache, a rank needs half as much again for a
second. Such noise is of milliseconds, however short steps are, so that what is lost must add up to something.

The excess is summed up (`cusum`). Of three sums one that is full names a rank, and it is quiet again once the first is
empty. That of what it is behind needs no reason, and is noisy: sleepers wake late, processors are waited for. It counts
where steps are longer than before it began to fill (`calm`). Those of how much longer than its peers it computed, and
of what its quota kept from it, are the reasons; nobody else has a part in them, so that a fifth more work shows on a
crowded machine, too. They are taken of the peers' own time without what that waited for processors, and count only if
the rank is behind at all. C4 (arXiv 2406.04594) for the idea that the one who waits least is the slow one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import msgspec

from ftrain_launcher.detect.aligned import Step
from ftrain_launcher.detect.calm import Calm
from ftrain_launcher.detect.cusum import WINDOW_STEPS, Cusum
from ftrain_launcher.detect.quotas import Quotas
from ftrain_launcher.detect.records import Communicator, NodeReport, RankStep
from ftrain_launcher.detect.roles import Roles
from ftrain_launcher.detect.verdict import Kind, Verdict

PROVED_BEHIND_MIN = 0.06
"""So much must a rank be behind in the median, whatever it has computed longer."""
UNSTARVED_MIN = 0.5
"""Of peers' own time, what they are taken to need at least where nobody keeps processors from them."""
QUOTA_LEAK = 0.02
"""The share of the sum that each step of a rank under a quota takes away: one that binds now and then, for hardly more
than is allowed, does not add up over hundreds of steps."""
QUIET = 0.05
"""The excess below which a named rank recovers."""
STEPS_SKIPPED = 3
"""At the beginning: compilation, first touches, caches."""
CROWDED = 0.1
"""The share of their own time that ranks wait for processors which others use, from which on a machine is crowded."""
_CROWDED_SECONDS = 2.0
"""Over about this long."""
BLOCKED_SECONDS_MIN = 1.5
"""So long must a rank be behind on a crowded machine that has not computed for longer than its peers: what happens to
the helpers of one rank alone is shorter. Twenty steps of a twentieth of a second, each by half too long."""
LOST_SECONDS_MIN, LOST_SECONDS_MIN_COMPUTED = 0.4, 0.06
"""So much must a rank have been behind on a crowded machine, all in all: if it has not computed for longer than its
peers, or if it has. Of steps of 20 ms, neighbours alone cost it 0.28 and 0.03 (eight ranks and more on two
processors)."""
EXCESS_OF_CROWD_MIN = 0.25
"""On a crowded machine a rank's excess must be so much of the share in which ranks wait for processors: noise is made
of that. Beside fifteen neighbours for each processor one of steps of 2 ms was behind by 0.14, and innocent."""
EXCESS_SECONDS_MIN = 0.0005
EXCESS_OF_STEP_MIN = 0.02
"""An excess below that of the step time slows nobody down."""
BASE_STEPS = 30
"""A rank without peers is compared with the median of its first ones."""
_BASE_DRIFT = 0.0005
"""So much a step its own earlier time follows it."""


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
    unstarved: float
    """The same, had they not waited for processors."""
    peers: int
    starved: float
    """How long it waited for a processor, beyond its peers."""
    computed: float
    """How much longer than its peers it was on a processor; 0: nothing is known of it."""
    held_back: float = 0.0
    """For how long its quota kept it from one."""

    def without_starvation(self) -> _Ratio:
        """Without what waiting for a processor explains of its excess: not that in which it had one."""
        own = max(self.own - self.starved, min(self.own, self.reference + max(0.0, self.computed, self.held_back)))
        return self._replace(ratio=own / self.reference, own=own)


class _Seen(NamedTuple):
    own: float
    reference: float
    inside: float
    """In communication."""
    computed: float
    """How much longer than its peers it was on a processor."""
    seconds: float
    """Of the whole step."""


def _excess() -> Cusum:
    # Excess of 0.5 in each step: 12 steps; of 0.2: 18, and 25 with noise of a tenth.
    # With an allowance of 0.08 neighbours that share a core for seconds, and take a tenth of it, had ranks named.
    return Cusum(allowance=0.1, limit_calm=1.8, least=0.12, clip=0.15)


def _held_back() -> Cusum:
    # What neighbours do is not in it.
    return Cusum(allowance=0.08, limit_calm=2.0, least=0.1, clip=0.2)


@dataclass(slots=True)
class _Rank:
    behind: Cusum = field(default_factory=_excess)
    """By how much its own time exceeds its peers', as a share of theirs."""
    computed: Cusum = field(default_factory=_excess)
    """How much longer it had a processor."""
    held_back: Cusum = field(default_factory=_held_back)
    """How much longer its quota kept it from one."""
    seen: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))
    calm: Calm = field(default_factory=Calm)
    named: bool = False
    base: float | None = None
    base_processor: float = 0.0
    firsts: list[tuple[float, float]] = field(default_factory=list)

    def take(self, found: _Ratio, step: int, share: RankStep, least: float, leak: float) -> None:
        """Add a step. ``least``: less seconds are no excess."""
        self.behind.notice(found.ratio - 1)
        found = found.without_starvation()
        inside = share.seconds - share.own_seconds
        self.seen.append(_Seen(found.own, found.reference, inside, found.computed, share.seconds))
        is_behind = found.own - found.reference >= least
        excess = found.ratio - 1 if is_behind else min(0.0, found.ratio - 1)
        if self.named:
            self.behind.add(excess, step, share.seconds, allowance=QUIET)
        else:
            self.behind.add(excess, step, share.seconds, leak=leak)
        proofs = [(self.computed, found.computed)]
        if leak:
            proofs.append((self.held_back, found.held_back))
        for proof, more in proofs:
            proof.notice(more / found.unstarved)
            proof.add(more / found.unstarved, step, share.seconds, leak=leak)
        if self.behind.sum == 0.0:
            self.calm.seconds.append(share.seconds)

    @property
    def computes_longer(self) -> bool:
        """Whether it was on a processor for half of what it takes longer, or more."""
        return 2 * median(seen.computed for seen in self.seen) >= self.behind_seconds

    @property
    def behind_seconds(self) -> float:
        """In a step, lately."""
        return median(seen.own - seen.reference for seen in self.seen)

    @property
    def steps_are_longer(self) -> bool:
        """Whether the job's steps last longer since it is behind: at least by half of that."""
        return 2 * self.calm.longer_seconds(median(seen.seconds for seen in self.seen)) >= self.behind_seconds

    @property
    def proof(self) -> Cusum | None:
        """What shows why it is behind."""
        found = next((proof for proof in (self.computed, self.held_back) if proof.stands_out), None)
        return found if found is not None and median(self.behind.window) >= PROVED_BEHIND_MIN else None


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
            if self._skipped:
                self._take_early(step)
            self._skipped += 1
            return Change()
        named: list[Verdict] = []
        gone: list[int] = []
        shares = {rank: share.step for rank, share in step.shares.items()}
        typical = median(share.seconds for share in shares.values())
        least = max(EXCESS_SECONDS_MIN, EXCESS_OF_STEP_MIN * typical)
        self._follow_crowd(step, typical)
        own, held_back = self._quotas.level(shares)
        for found in self._ratios(own, step):
            found = found._replace(held_back=held_back.get(found.rank, 0.0))
            state = self._ranks[found.rank]
            leak = QUOTA_LEAK if self._quotas.holds(found.rank) else 0.0
            state.take(found, step.number, shares[found.rank], least, leak)
            if state.named:
                if state.behind.sum == 0.0:
                    state.named = False
                    gone.append(found.rank)
            elif by := self._slow_by(found.rank, state, step.number):
                state.named = True
                named.append(self._verdict(found, state, by, step.number))
                state.behind.sum = state.behind.limit
        return Change(tuple(named), tuple(gone))

    def _take_early(self, step: Step) -> None:
        """One of the first steps accuses nobody, but shows how long they last."""
        own = {rank: share.step.own_seconds for rank, share in step.shares.items()}
        for found in self._among_peers(own, step):
            if found.ratio < 1 + QUIET:
                self._ranks[found.rank].calm.seconds.append(step.shares[found.rank].step.seconds)

    def _slow_by(self, rank: int, state: _Rank, step: int) -> Cusum | None:
        """What shows that a rank is slow; None: it is not."""
        if (proof := state.proof) is not None and (proof is state.held_back or self._lasts(rank, state, proof, step)):
            return proof
        if not state.behind.stands_out or not self._lasts(rank, state, state.behind, step):
            return None
        # Beside one that is slow already another one makes nothing longer.
        return state.behind if state.steps_are_longer or self.named else None

    def _follow_crowd(self, step: Step, seconds: float) -> None:
        own = sum(share.step.own_seconds for share in step.shares.values())
        starved = sum(share.step.starved_seconds for share in step.shares.values())
        if own > 0.0:
            self._seconds = min(_CROWDED_SECONDS, self._seconds + seconds)
            self._crowd += min(1.0, seconds / self._seconds) * (starved / own - self._crowd)

    def _lasts(self, rank: int, state: _Rank, by: Cusum, step: int) -> bool:
        """Whether what a rank is behind is more than a moment of a crowded machine."""
        if self._crowd < CROWDED or self._quotas.holds(rank):
            return True
        if median(state.behind.window) < EXCESS_OF_CROWD_MIN * self._crowd:
            return False
        lost = state.behind_seconds * (step - by.since)
        if state.computes_longer:
            return lost >= LOST_SECONDS_MIN_COMPUTED
        return by.seconds >= BLOCKED_SECONDS_MIN and lost >= LOST_SECONDS_MIN

    def _ratios(self, own: Mapping[int, float], step: Step) -> Iterator[_Ratio]:
        """Each rank of the step, over its reference; none for those of which nothing can be said."""
        yield from self._among_peers(own, step)
        grouped = {rank for group in self._roles.groups() for rank in group}
        used = _used(step)
        alone: dict[int, float] = {}
        more: dict[int, float] = {}
        for rank, seconds in own.items():
            state = self._state(rank)
            if rank not in grouped and (base := _follow(state, seconds, used[rank])) is not None:
                alone[rank] = seconds / base
                more[rank] = used[rank] / state.base_processor if state.base_processor else 1.0
        if len(alone) > 1:
            for found in self._among(list(alone), alone, more, step):
                state = self._ranks[found.rank]
                reference = (state.base or 0.0) * found.reference
                yield found._replace(
                    own=own[found.rank],
                    reference=reference,
                    unstarved=reference,
                    peers=0,
                    computed=state.base_processor * found.computed,
                )

    def _among_peers(self, own: Mapping[int, float], step: Step) -> Iterator[_Ratio]:
        used = _used(step)
        for group in self._roles.groups():
            ranks = [rank for rank in group if rank in own]
            if len(ranks) > 1:
                yield from self._among(ranks, own, used, step)

    def _among(
        self, ranks: list[int], values: Mapping[int, float], used: Mapping[int, float], step: Step
    ) -> Iterator[_Ratio]:
        others = _Others([values[rank] for rank in ranks])
        others_used = _Others([used[rank] for rank in ranks])
        shares = {rank: step.shares[rank].step for rank in ranks}
        others_ran = _Others([share.processor_seconds for share in shares.values()])
        starved = {rank: share.starved_seconds + share.helpers_starved_seconds for rank, share in shares.items()}
        others_starved = _Others(list(starved.values()))
        others_rest = _Others([share.own_seconds - share.starved_seconds for share in shares.values()])
        for rank, share in shares.items():
            value = values[rank]
            reference = others.median(value)
            if reference > 0.0:
                self._state(rank)
                ran = others_ran.median(share.processor_seconds)
                more = max(1.0, share.processor_seconds / ran) if ran > 0.0 else 1.0
                beyond = max(0.0, starved[rank] - more * others_starved.median(starved[rank]))
                rest = others_rest.median(share.own_seconds - share.starved_seconds)
                unstarved = max(rest, UNSTARVED_MIN * reference)
                computed = used[rank] - others_used.median(used[rank])
                yield _Ratio(rank, value / reference, value, reference, unstarved, len(ranks) - 1, beyond, computed)

    def _state(self, rank: int) -> _Rank:
        state = self._ranks.get(rank)
        if state is None:
            state = self._ranks[rank] = _Rank()
        return state

    def _verdict(self, found: _Ratio, state: _Rank, by: Cusum, step: int) -> Verdict:
        ratio = 1 + median(state.behind.window)
        own, theirs, inside, _, _ = (median(values) for values in zip(*state.seen, strict=True))
        node = self._nodes.get(found.rank, "")
        peers = f"its {found.peers} peers'" if found.peers > 1 else "its peer's"
        than = f"{peers} own time" if found.peers else "its own time of earlier steps"
        return Verdict(
            kind=Kind.SLOW,
            generation=self._generation,
            ranks=(found.rank,),
            confidence=(0.95 if ratio >= 1.3 else 0.8) - (0.0 if found.peers else 0.15),
            sentence=f"rank {found.rank} on {node} is slow: it takes {ratio:.2f} times {than}, {_ms(own)} ms "
            f"a step and not {_ms(theirs)}, since step {by.since}; it waits for others for {_ms(inside)} ms a step",
            seconds=by.seconds,
            step=step,
            details={
                "node": node,
                "ratio": f"{ratio:.3f}",
                "own_seconds": f"{own:.6f}",
                "reference_seconds": f"{theirs:.6f}",
                "communication_seconds": f"{inside:.6f}",
                "peers": str(found.peers),
                "since_step": str(by.since),
            },
        )


def _used(step: Step) -> dict[int, float]:
    return {rank: share.step.processor_seconds for rank, share in step.shares.items()}


class _Others:
    """The median of all values of a group but one."""

    def __init__(self, values: list[float]) -> None:
        self._ordered, self._middle = sorted(values), len(values) // 2

    def median(self, but: float) -> float:
        ordered, middle = self._ordered, self._middle
        if len(ordered) % 2 == 0:
            return ordered[middle] if but <= ordered[middle - 1] else ordered[middle - 1]
        if but < ordered[middle]:
            return (ordered[middle] + ordered[middle + 1]) / 2
        if but > ordered[middle]:
            return (ordered[middle - 1] + ordered[middle]) / 2
        return (ordered[middle - 1] + ordered[middle + 1]) / 2


def _follow(state: _Rank, own: float, used: float) -> float | None:
    """The earlier time of a rank without peers, which follows slow drifts; None: not yet known, or nothing."""
    if state.base is None:
        state.firsts.append((own, used))
        if len(state.firsts) == BASE_STEPS:
            state.base, state.base_processor = (median(values) for values in zip(*state.firsts, strict=True))
        return None
    if not state.named:
        state.base *= 1 + (_BASE_DRIFT if own > state.base else -_BASE_DRIFT)
        state.base_processor *= 1 + (_BASE_DRIFT if used > state.base_processor else -_BASE_DRIFT)
    return state.base or None


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"
