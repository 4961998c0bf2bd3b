"""Made-up jobs for the detector of slow ranks: programs of ranks, played with noise, as the agents would report them.

Playing a program (made_up_shapes.py) gives the times at which operations are entered and left, and so the records.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace
from simulation.made_up_shapes import Compute, Receive, Reduce, Send, Shape, Start, Until, WaitAll

from ftrain_launcher.detect.records import (
    Channel,
    Collectives,
    CollectivesStep,
    Communicator,
    NodeReport,
    Op,
    Operation,
    RankRecord,
    RankStep,
)
from ftrain_launcher.rings.step_log import spread, spread_throttled


@dataclass
class Noise:
    """What a machine does to its ranks. Zero: nothing."""

    spread: float = 0.03
    """Log-normal, of each computation."""
    tail: float = 0.02
    """Chance of a step to be longer by an exponential draw with a mean of half of it."""
    stall: float = 0.002
    """Chance of being descheduled for 50 ms."""
    node: float = 0.01
    """Chance of a node's neighbour to become busy for some steps: all of its ranks are slower."""
    drift: float = 0.3
    """All are slower and quicker, by so much, over thousands of steps."""
    starving: float = 0.0
    """One rank after the other has to wait for its processor, for long: in most steps about so many seconds."""
    crowded: float = 0.0
    """There are fewer processors than ranks: each rank waits for one in each step, for about so many seconds."""
    told: bool = True
    """The kernel tells of it."""
    asleep: float = 0.0
    """Of each computation, the share that needs no processor: a GPU's, or what waits for a disk."""
    sharing: float = 0.0
    """One rank after the other shares its core or its memory's width with a neighbour, for a second or more: it
    computes for longer, by a share of up to so much, and the kernel tells nobody."""


@dataclass
class Faults:
    slow: dict[int, float] = field(default_factory=dict)
    """Factor by rank."""
    slow_from: int = 0
    slow_until: int = 1 << 60
    slow_transfer: dict[str, float] = field(default_factory=dict)
    """Factor by group."""
    extra: dict[int, dict[int, float]] = field(default_factory=dict)
    """Seconds by step and rank: evaluation, checkpoint."""
    quota: dict[int, float] = field(default_factory=dict)
    """Of each `QUOTA_PERIOD_SECONDS`, the share for which this rank may compute."""


TRANSFER_SECONDS = 0.002
SHARING_CHANCE, SHARING_STEPS = 0.02, 40
"""Of a step to be the first that is shared, and how many are on average."""
QUOTA_PERIOD_SECONDS = 0.1
STEPS_A_REPORT = 10
"""Over so many it is spread what a rank was starved."""


class _Interval(NamedTuple):
    group: str
    bytes: int
    entry: float
    exit: float


class _Rank:
    def __init__(self) -> None:
        self.clock = 0.0
        self.begun = 0.0
        self.at = 0
        self.started: list[tuple[str, int]] = []
        """Collectives that run beside the computation: group, number."""
        self.starved = 0.0
        self.throttled = 0.0
        self.spent = (0, 0.0)
        """The period of the quota in which it computed last, and for how long."""
        self.kept = 0.0
        """From computing, in this step."""
        self.pending: int | None = None
        """The number of the collective in which it waits."""
        self.intervals: list[_Interval] = []
        self.waited = 0.0
        """In this step, for operations."""
        self.entered: dict[str, int] = defaultdict(int)

    def wait_until(self, end: float) -> None:
        self.waited += max(0.0, end - self.clock)
        self.clock = max(self.clock, end)


class Player:
    """Plays a shape step by step."""

    def __init__(self, shape: Shape, seed: int, noise: Noise | None = None, faults: Faults | None = None) -> None:
        self.shape = shape
        self.noise, self.faults = noise or Noise(), faults or Faults()
        self._dice = random.Random(seed)
        self._ranks = [_Rank() for _ in shape.programs]
        self._moves = 0
        self._quotas: dict[int, float] = {}
        self._slow: dict[int, float] = {}
        """As of this step, by rank."""
        self._busy: dict[str, int] = {}
        self._starving, self._starving_steps = 0, 0
        """Which rank, and for how many more steps."""
        self._sharing, self._sharing_steps, self._shared_by = 0, 0, 1.0
        """The same, and how much longer it takes."""
        self._entries: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
        self._ends: dict[tuple[str, int], float] = {}
        self._free: dict[str, float] = defaultdict(float)
        self._sent: dict[tuple[int, int], deque[float]] = defaultdict(deque)
        self._of_rank = {
            rank: [name for name, members in shape.groups.items() if rank in members]
            for rank in range(len(self._ranks))
        }
        self._channels = {
            rank: sorted({item.peer for item in program if isinstance(item, Send | Receive)})
            for rank, program in enumerate(shape.programs)
        }

    def steps(self, count: int) -> Iterator[list[NodeReport]]:
        """Each step as one report a node."""
        at_once = STEPS_A_REPORT if self.noise.starving or self.noise.crowded or self.faults.quota else 1
        for first in range(0, count, at_once):
            played = [self._play(number) for number in range(first, min(count, first + at_once))]
            shares = [self._shared(rank, [step[rank] for step in played]) for rank in range(len(self._ranks))]
            for number, steps in enumerate(zip(*shares, strict=True), first):
                yield self._reports(number, dict(enumerate(steps)))

    def _shared(self, rank: int, steps: list[RankStep]) -> list[RankStep]:
        state = self._ranks[rank]
        starved, throttled = state.starved, state.throttled
        state.starved = state.throttled = 0.0
        return spread_throttled(spread(steps, starved), throttled if self.noise.told else 0.0)

    def _play(self, number: int) -> dict[int, RankStep]:
        for rank in self._ranks:
            rank.at, rank.begun, rank.intervals, rank.waited, rank.kept = 0, rank.clock, [], 0.0, 0.0
        factors = self._factors(number)
        is_faulty = self.faults.slow_from <= number < self.faults.slow_until
        self._quotas = self.faults.quota if is_faulty else {}
        self._slow = self.faults.slow if is_faulty else {}
        done: dict[int, RankStep] = {}
        waiting = list(range(len(self._ranks)))
        while waiting:
            moves = self._moves
            waiting = [rank for rank in waiting if not self._advance(rank, factors[rank])]
            assert self._moves > moves, f"the programs lock each other out at step {number}"
        for rank, state in enumerate(self._ranks):
            state.clock += self.faults.extra.get(number, {}).get(rank, 0.0)
            done[rank] = self._record(rank, number)
        self._entries.clear()
        self._ends.clear()
        return done

    def _factors(self, number: int) -> list[float]:
        """How much longer each rank computes in this step."""
        noise, dice = self.noise, self._dice
        common = 1 + noise.drift * abs((number % 4000) / 2000 - 1)
        factors = []
        for node in dict.fromkeys(self.shape.nodes.values()):
            self._busy[node] = max(0, self._busy.get(node, 0) - 1)
            if dice.random() < noise.node:
                self._busy[node] = dice.randint(1, 5)
        for rank, node in self.shape.nodes.items():
            factor = common * dice.lognormvariate(0.0, noise.spread) if noise.spread else common
            if dice.random() < noise.tail:
                factor += dice.expovariate(2.0)
            if self._busy[node]:
                factor *= 1.4
            factors.append(factor)
            if dice.random() < noise.stall:
                self._ranks[rank].clock += 0.05
                self._ranks[rank].kept += 0.05
        if noise.sharing:
            self._share()
            factors[self._sharing] *= self._shared_by
        if noise.starving:
            self._starve()
        if noise.crowded:
            for state in self._ranks:
                self._keep_waiting(state, dice.expovariate(1 / noise.crowded))
        return factors

    def _share(self) -> None:
        dice = self._dice
        self._sharing_steps -= 1
        if self._sharing_steps < 0:
            self._shared_by = 1.0
            if dice.random() < SHARING_CHANCE:
                self._sharing, self._shared_by = (
                    dice.randrange(len(self._ranks)),
                    1 + dice.uniform(0, self.noise.sharing),
                )
                self._sharing_steps = int(dice.expovariate(1 / SHARING_STEPS))

    def _starve(self) -> None:
        if self._starving_steps == 0:
            self._starving, self._starving_steps = self._dice.randrange(len(self._ranks)), self._dice.randint(5, 200)
        self._starving_steps -= 1
        if self._dice.random() < 0.8:
            self._keep_waiting(self._ranks[self._starving], self._dice.expovariate(1 / self.noise.starving))

    def _keep_waiting(self, state: _Rank, seconds: float) -> None:
        state.clock += seconds
        state.kept += seconds
        state.starved += seconds if self.noise.told else 0.0

    def _advance(self, rank: int, factor: float) -> bool:
        """Go on until the rank has to wait for others; True: its step is done."""
        state, program = self._ranks[rank], self.shape.programs[rank]
        while state.at < len(program):
            item = program[state.at]
            match item:
                case Compute(seconds):
                    usual = seconds * factor * self._dice.lognormvariate(0.0, self.noise.spread)
                    state.kept += self.noise.asleep * usual
                    self._compute(rank, usual * self._slow.get(rank, 1.0))
                case Reduce(group, size):
                    if not self._collective(rank, group, size):
                        return False
                case Start(group, _):
                    state.started.append((group, self._enter(rank, group)))
                case WaitAll():
                    if not self._wait_all(rank):
                        return False
                case Until(seconds):
                    left = max(0.0, state.begun + seconds - state.clock)
                    state.clock += left
                    state.kept += left
                case Send(peer):
                    self._sent[rank, peer].append(state.clock)
                    state.intervals.append(_Interval("", 0, state.clock, state.clock + 1e-5))
                    state.clock += 1e-5
                case Receive(peer):
                    if not self._sent[peer, rank]:
                        return False
                    end = max(state.clock, self._sent[peer, rank].popleft() + 1e-4)
                    state.intervals.append(_Interval("", 0, state.clock, end))
                    state.wait_until(end)
            state.at += 1
            self._moves += 1
        return True

    def _compute(self, rank: int, seconds: float) -> None:
        """As far as its quota allows in this period, then in the next ones."""
        state, share = self._ranks[rank], self._quotas.get(rank)
        while share is not None and seconds > 0.0:
            period = int(state.clock / QUOTA_PERIOD_SECONDS + 1e-9)
            end = (period + 1) * QUOTA_PERIOD_SECONDS
            spent = state.spent[1] if state.spent[0] == period else 0.0
            now = min(seconds, share * QUOTA_PERIOD_SECONDS - spent, end - state.clock)
            state.clock += now
            state.spent = period, spent + now
            seconds -= now
            if seconds > 0.0:
                state.throttled += end - state.clock
                state.kept += end - state.clock
                state.clock = end
        state.clock += seconds

    def _enter(self, rank: int, group: str) -> int:
        state = self._ranks[rank]
        number = state.entered[group]
        state.entered[group] += 1
        self._entries[group, number][rank] = state.clock
        self._moves += 1
        return number

    def _end(self, group: str, number: int) -> float | None:
        """When the members leave; None: not all have entered."""
        key = group, number
        if key not in self._ends:
            entries = self._entries[key]
            if len(entries) < len(self.shape.groups[group]):
                return None
            transfer = TRANSFER_SECONDS * self._dice.uniform(0.9, 1.1) * self.faults.slow_transfer.get(group, 1.0)
            self._free[group] = self._ends[key] = max(self._free[group], *entries.values()) + transfer
        return self._ends[key]

    def _collective(self, rank: int, group: str, size: int) -> bool:
        state = self._ranks[rank]
        if state.pending is None:
            state.pending = self._enter(rank, group)
        number = state.pending
        end = self._end(group, number)
        if end is None:
            return False
        state.pending = None
        state.intervals.append(_Interval(group, size, self._entries[group, number][rank], end))
        state.wait_until(end)
        return True

    def _wait_all(self, rank: int) -> bool:
        state = self._ranks[rank]
        ends = [self._end(group, number) for group, number in state.started]
        if None in ends:
            return False
        for (group, number), end in zip(state.started, ends, strict=True):
            assert end is not None
            state.intervals.append(_Interval(group, 1 << 20, self._entries[group, number][rank], end))
            state.wait_until(end)
        state.started = []
        return True

    def _record(self, rank: int, number: int) -> RankStep:
        state = self._ranks[rank]
        collectives = []
        for index, group in enumerate(self._of_rank[rank]):
            mine = [i for i in state.intervals if i.group == group]
            if mine:
                most = max(i.bytes for i in mine)
                lengths = [i.exit - i.entry for i in mine]
                least = min(i.exit - i.entry for i in mine if i.bytes == most)
                total = sum(i.bytes for i in mine)
                collectives.append(CollectivesStep(index, len(mine), total, sum(lengths), least))
        seconds = state.clock - state.begun
        own = seconds - state.waited
        return RankStep(rank, number, seconds, own, tuple(collectives), own - state.kept)

    def _reports(self, number: int, steps: dict[int, RankStep]) -> list[NodeReport]:
        by_node: dict[str, list[int]] = defaultdict(list)
        for rank, node in self.shape.nodes.items():
            by_node[node].append(rank)
        return [self._report(node, ranks, number, steps) for node, ranks in by_node.items()]

    def _report(self, node: str, ranks: list[int], number: int, steps: dict[int, RankStep]) -> NodeReport:
        names = sorted({name for rank in ranks for name in self._of_rank[rank]})
        place = {name: index for index, name in enumerate(names)}
        last = Operation(1, Op.ALL_REDUCE, 4, 6, 1, -1, 0.0, 0.0)
        records, moved = [], []
        for rank in ranks:
            groups = [place[name] for name in self._of_rank[rank]]
            records.append(
                RankRecord(
                    rank,
                    number,
                    0.0,
                    tuple(Collectives(group, 1, 1, (), last) for group in groups),
                    tuple(Channel(0, peer, 1, 1, 1, 1) for peer in self._channels[rank]),
                )
            )
            renumbered = tuple(
                CollectivesStep(groups[c.communicator], c.operations, c.bytes, c.seconds, c.least_seconds)
                for c in steps[rank].collectives
            )
            moved.append(replace(steps[rank], collectives=renumbered))
        communicators = tuple(Communicator(name, self.shape.groups[name]) for name in names)
        return NodeReport(
            node=node, generation=1, communicators=communicators, ranks=tuple(records), steps=tuple(moved)
        )
