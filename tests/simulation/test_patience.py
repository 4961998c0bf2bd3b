"""The production detector over jobs that are begun again and again: stalls that come in each run at the same places,
and hangs that do. A script without snapshots begins at its first step each time. ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise

import pytest
from simulation.comm_job import Job, Mesh, Work
from simulation.comm_programs import Act, Action

from ftrain_launcher.detect.patience import Call, Patience
from ftrain_launcher.detect.verdict import Kind, Verdict

ONE = os.environ.get("FTRAIN_SEED")
SEEDS = range(3) if ONE is None else [int(ONE)]
SHAPES = [Mesh(4), Mesh(2, tp=2), Mesh(2, pp=2)]
STEPS = 130
FIRST_SECONDS_MAX = 1.0
RUNS_MAX = 40


@dataclass
class Stalls:
    """Every so many steps a rank stands still before its step."""

    every: int
    seconds: float
    rank: int
    turns: bool = False
    """Another rank each time."""
    computes: bool = False
    hang_at: tuple[int, int] | None = None
    """A rank, and before which step it hangs."""
    struck: list[int] = field(default_factory=list)

    def __call__(self, job: Job, rank: int, step: int, actions: Iterator[Action]) -> Iterator[Action]:
        if self.hang_at == (rank, step):
            return iter([Act("loop")])
        stall, place = divmod(step, self.every)
        late = (self.rank + stall * self.turns) % job.mesh.size
        if rank != late or place or not step:
            return actions
        return chain([Act("quiet computing" if self.computes else "quiet", self.seconds)], actions)


class Runs:
    """One job's, until it is through or given up."""

    def __init__(self, seed: int, mesh: Mesh, stalls: Stalls) -> None:
        self.seed, self.work, self.stalls = seed, Work(mesh, 0.03), stalls
        self.patience = Patience()
        self.called: list[Verdict] = []
        self.gave_up = False

    def go(self) -> None:
        """Run after run."""
        while len(self.called) < RUNS_MAX and not self.gave_up:
            verdict = self._run(len(self.called))
            if verdict is None:
                return
            assert verdict.kind is Kind.HANG
            call = Call(len(self.called), -1 if verdict.step is None else verdict.step, verdict.allowed_seconds)
            self.called.append(verdict)
            self.gave_up = self.patience.times_used_up(verdict.ranks, call) > 0
            self.patience.called(verdict.ranks, call)

    def _run(self, number: int) -> Verdict | None:
        job = Job(self.seed + 1000 * number, self.work, 2, self.stalls, patience=self.patience, generation=number + 1)
        job.run(2000.0, lambda: bool(job.verdicts) or min(rank.step for rank in job.ranks) >= STEPS)
        return job.verdicts[0][1] if job.verdicts else None


@pytest.mark.parametrize("mesh", SHAPES, ids=str)
@pytest.mark.parametrize("computes", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_stall_that_comes_in_each_run_is_called_once_or_twice_and_no_more(
    seed: int, computes: bool, mesh: Mesh
) -> None:
    dice = random.Random(f"{seed}{mesh}")
    stalls = Stalls(dice.choice([20, 30, 40]), dice.uniform(0.8, 1.3), dice.randrange(mesh.size), computes=computes)
    runs = Runs(seed, mesh, stalls)
    runs.go()
    assert len(runs.called) <= 2, (seed, stalls, [verdict.sentence for verdict in runs.called])
    assert all(verdict.seconds <= FIRST_SECONDS_MAX for verdict in runs.called[:1])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_stall_takes_as_many_runs_as_doublings(seed: int) -> None:
    runs = Runs(seed, Mesh(4), Stalls(40, 10.0, 2))
    runs.go()
    assert 1 <= len(runs.called) <= 5, [verdict.sentence for verdict in runs.called]
    assert not runs.gave_up


@pytest.mark.parametrize("seed", SEEDS)
def test_what_each_rank_does_in_turn_is_called_for_two_of_them(seed: int) -> None:
    runs = Runs(seed, Mesh(4), Stalls(20, 1.0, 0, turns=True))
    runs.go()
    assert 1 <= len(runs.called) <= 4, [verdict.sentence for verdict in runs.called]


def test_a_rank_that_hangs_in_each_run_is_given_up_in_the_end() -> None:
    runs = Runs(0, Mesh(2), Stalls(50, 0.0, 0, hang_at=(1, 12)))
    runs.go()
    assert runs.gave_up
    assert {verdict.ranks for verdict in runs.called} == {(1,)}
    given = [verdict.allowed_seconds for verdict in runs.called]
    assert len(given) <= 9
    assert all(after >= 1.9 * before for before, after in pairwise(given)), given


def test_another_rank_has_no_more_time_than_before() -> None:
    """Given a rank that is known to stall, when another hangs, then that is seen as soon as ever."""
    runs = Runs(1, Mesh(4), Stalls(30, 1.0, 2))
    runs.go()
    assert len(runs.called) == 1
    runs.stalls.hang_at = 1, 28
    verdict = runs._run(1)
    assert verdict is not None
    assert verdict.ranks == (1,)
    assert verdict.seconds <= FIRST_SECONDS_MAX
