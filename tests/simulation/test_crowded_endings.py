"""A crowded machine while ranks come and go: rings on a made-up clock, read as agents read them, judged together.

Rank 1 waits for its processor in each step, and its peers do not. The kernel tells, but only of a process that is
there: what comes to it before its agent looks for the first time, and after the agent looked for the last time before
it ended, nobody knows. Seeds change how long the waits are; ``FTRAIN_SEED=n`` replays one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from ftrain.comm.ring import PYTHON, Group, Identity, ring_path
from ftrain.comm.writer import Call, RingWriter
from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.records import Communicator, NodeReport, Op
from ftrain_launcher.rings.rank_reader import RankReader
from ftrain_launcher.rings.starvation import Waited

ONE = os.environ.get("FTRAIN_SEED")
SEEDS = range(5) if ONE is None else [int(ONE)]
RANKS = 3
STARVED = 1
MS = 1_000_000
OWN_NS = 3 * MS
STEPS = 100


class Kernel:
    """What it says of one process; ``answers_always``: also when that has ended, as if nothing had come to it."""

    def __init__(self, *, answers_always: bool) -> None:
        self.waited_ns = self._told_ns = 0
        self.ended = False
        self._answers_always = answers_always

    def more(self) -> Waited | None:
        """As `Starvation` has it."""
        if self.ended:
            return Waited() if self._answers_always else None
        told, self._told_ns = self._told_ns, self.waited_ns
        return Waited((self.waited_ns - told) * 1e-9)


class Rank:
    def __init__(self, folder: Path, number: int, *, answers_always: bool) -> None:
        self.number, self.now_ns, self.processor_ns = number, 1_000 * MS, 0
        self.path = ring_path(folder / str(number), 0)
        self.path.parent.mkdir(parents=True)
        identity = Identity(PYTHON, os.getpid(), 1, number, RANKS, 1)
        self._ring = RingWriter(self.path, identity, lambda: self.now_ns, lambda: self.processor_ns)
        self._world = self._ring.add_communicator("world", tuple(range(RANKS)))
        self.kernel = Kernel(answers_always=answers_always)
        self.reader: RankReader | None = None

    def open(self, *, since_ns: int | None = None) -> None:
        """Its agent finds the ring."""
        self.reader = RankReader(
            self.path, self.number, os.getpid(), self._index, self.now_ns if since_ns is None else since_ns
        )
        self.reader._starvation.close()
        self.reader._starvation = self.kernel  # type: ignore[assignment]
        self.kernel.more()

    def compute(self, waits_ns: int) -> None:
        self.now_ns += OWN_NS + waits_ns
        self.processor_ns += OWN_NS
        self.kernel.waited_ns += waits_ns

    def reduce(self, leaves_ns: int, step: int) -> None:
        """All leave at once, and the step is over."""
        entered = self._ring.enter(Call(communicator=self._world, op=Op.ALL_REDUCE, bytes=1 << 20))
        self.now_ns = leaves_ns
        self._ring.leave(entered)
        self._ring.mark(step)

    def told(self) -> NodeReport:
        assert self.reader is not None
        record, steps = self.reader.report(self.now_ns)
        assert record is not None
        return NodeReport(
            node=f"node-{self.number}",
            generation=1,
            communicators=(Communicator("world", tuple(range(RANKS))),),
            ranks=(record,),
            steps=tuple(steps),
        )

    def _index(self, group: Group) -> int:
        return 0


class Job:
    """Ranks that make their steps together."""

    def __init__(self, folder: Path, seed: int, *, answers_always: bool = False) -> None:
        self.ranks = [Rank(folder, number, answers_always=answers_always) for number in range(RANKS)]
        self.named: list[tuple[int, ...]] = []
        self._dice = random.Random(seed)
        self._pace = Pace(1, {number: f"node-{number}" for number in range(RANKS)})
        self._made = 0

    def steps(self, count: int) -> None:
        for _ in range(count):
            for rank in self.ranks:
                rank.compute(int(self._dice.expovariate(1 / (4 * MS))) if rank.number == STARVED else 0)
            together = max(rank.now_ns for rank in self.ranks) + MS
            for rank in self.ranks:
                rank.reduce(together, self._made)
            self._made += 1

    def report(self) -> None:
        for rank in self.ranks:
            now = rank.now_ns * 1e-9
            self._pace.take(rank.told(), now)
            self.named += [verdict.ranks for verdict in self._pace.verdicts(now)]


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_named_for_what_came_to_it_in_its_last_steps(tmp_path: Path, seed: int) -> None:
    assert _end(Job(tmp_path / "told", seed)) == []
    assert _end(Job(tmp_path / "untold", seed, answers_always=True)) == [(STARVED,)], "so the test tests something"


def _end(job: Job) -> list[tuple[int, ...]]:
    for rank in job.ranks:
        rank.open()
    job.steps(STEPS)
    job.report()
    job.steps(3 * STEPS)  # on a crowded machine it takes more than a moment to be named
    for rank in job.ranks:
        rank.kernel.ended = True
    job.report()
    return job.named


@pytest.mark.parametrize("seed", SEEDS)
def test_nor_for_what_came_to_it_before_its_agent_looked(tmp_path: Path, seed: int) -> None:
    """The agent waits for a processor, too."""
    assert _begin(Job(tmp_path / "known", seed)) == []
    assert _begin(Job(tmp_path / "taken for known", seed), since_ns=0) == [(STARVED,)], "so the test tests something"


def _begin(job: Job, since_ns: int | None = None) -> list[tuple[int, ...]]:
    job.steps(STEPS)
    for rank in job.ranks:
        rank.open(since_ns=since_ns)
    for _ in range(4):
        job.steps(STEPS // 4)
        job.report()
    return job.named
