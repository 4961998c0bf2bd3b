"""The production detector over made-up jobs: one fault each, or none; ``FTRAIN_SEED=n`` replays one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import pytest
from simulation.comm_job import Job, Mesh, Reporting, Work
from simulation.comm_programs import Act, Action, Collective, Compute, Send

from ftrain_launcher.detect.records import Op
from ftrain_launcher.detect.verdict import Kind, Verdict

ONE = os.environ.get("FTRAIN_SEED")
SEEDS = range(5) if ONE is None else [int(ONE)]
CALLS = ("skip", "op", "shape", "order", "stop inside")
FAULT_STEP = 25
LATENCY_SECONDS_MAX = 1.0
PIPELINES = [Mesh(1, pp=2), Mesh(1, pp=4), Mesh(2, pp=2), Mesh(2, pp=4), Mesh(2, pp=2, tp=2)]


def draw_work(dice: random.Random) -> Work:
    """A job of up to 16 ranks whose steps take less than 0.1 s."""
    mesh = dice.choice(
        [
            Mesh(2), Mesh(4), Mesh(8), Mesh(2, tp=2), Mesh(2, tp=4), Mesh(4, tp=2), Mesh(1, tp=4),
            Mesh(2, pp=2), Mesh(1, pp=4), Mesh(2, pp=4), Mesh(2, pp=2, tp=2),
        ]
    )  # fmt: skip
    return Work(
        mesh,
        compute_seconds=dice.uniform(0.01, 0.06),
        buckets=dice.randint(1, 4),
        layers=dice.randint(1, 3),
        fsdp=mesh.pp == mesh.tp == 1 and dice.random() < 0.5,
        world_every=dice.choice([1, 5]),
        early_receives=dice.random() < 0.5,
    )


class Injected:
    """At one step of one rank, before one of its actions, something happens."""

    def __init__(self, dice: random.Random, kind: str, mesh: Mesh) -> None:
        self.kind, self.rank = kind, dice.randrange(mesh.size)
        self.step = FAULT_STEP + dice.randrange(5)
        self.place = dice.random()
        self.done = False

    def __call__(self, job: Job, rank: int, step: int, actions: Iterator[Action]) -> Iterator[Action]:
        if rank != self.rank or step < self.step or self.done:
            return actions
        planned = list(actions)
        calls = [action for action in planned if isinstance(action, Collective)]
        if self.kind in CALLS and not calls:
            return iter(planned)
        self.done = True
        return iter(self.changed(planned, job))

    def changed(self, actions: list[Action], job: Job) -> list[Action]:
        computing = [i for i, action in enumerate(actions) if isinstance(action, Compute)]
        collectives = [i for i, action in enumerate(actions) if isinstance(action, Collective)]
        at = computing[int(self.place * len(computing))]
        if self.kind in ("stop", "loop", "sleep", "gone"):
            return [*actions[:at], Act(self.kind)]
        if self.kind == "no send":
            sends = [i for i, action in enumerate(actions) if isinstance(action, Send)]
            at = sends[int(self.place * len(sends))]
            job.fault_at = job.world.now
            return [*actions[:at], *actions[at + 1 :]]
        if self.kind == "stop inside":
            return [*actions[: collectives[0]], Act("stop soon"), *actions[collectives[0] :]]
        at = collectives[int(self.place * len(collectives))]
        action = actions[at]
        assert isinstance(action, Collective)
        job.fault_at = job.world.now
        if self.kind == "order":
            before, last = collectives[-2:] if len(collectives) > 1 else (computing[-1], collectives[-1])
            actions[before], actions[last] = actions[last], actions[before]
            return actions
        if self.kind == "skip":
            return [*actions[:at], *actions[at + 1 :]]
        if self.kind == "shape":
            other = Collective(action.group, action.op, action.elements + 7, action.asynchronous)
        else:
            assert self.kind == "op"
            other = Collective(action.group, Op.BROADCAST, action.elements, action.asynchronous, root=0)
        return [*actions[:at], other, *actions[at + 1 :]]


class Innocent:
    """What is none: the same happens to all ranks at some steps, or to one while the others wait at a barrier."""

    def __init__(self, kind: str, seconds: float, spread: float = 0.0, every: int = 20) -> None:
        self.kind, self.seconds, self.spread, self.every = kind, seconds, spread, every

    def __call__(self, job: Job, rank: int, step: int, actions: Iterator[Action]) -> Iterator[Action]:
        if self.kind == "first step":
            if step < 2:
                long = self.seconds / (1 + 4 * step) + job.world.between(-self.spread, self.spread) / (1 + 4 * step)
                return chain([Act("quiet computing", long)], actions)
            return actions
        if self.kind == "nothing" or step == 0 or step % self.every:
            return actions
        before: list[Action] = []
        if self.kind == "evaluation":
            if rank == 0:
                before.append(Act("quiet computing", self.seconds))
            before.append(Collective("world", Op.BARRIER, 1))
        else:
            seconds = self.seconds + job.world.between(-self.spread, self.spread)
            before.append(Act("quiet" if self.kind == "stall" else "quiet computing", seconds))
        return iter([*before, *actions])


def first(job: Job, seconds: float = 5.0) -> tuple[float, Verdict]:
    """Run to the first verdict after the fault, and give its latency."""
    job.run(60.0, lambda: job.fault_at is not None)
    assert job.fault_at is not None
    assert job.verdicts == [], f"told before the fault: {job.verdicts}"
    job.run(seconds, lambda: bool(job.verdicts))
    assert job.verdicts, "nothing was told"
    at, verdict = job.verdicts[0]
    return at - job.fault_at, verdict


def draw(seed: int, kind: str) -> tuple[Job, Injected]:
    """A job into which a fault of this kind comes."""
    dice = random.Random(f"{kind}{seed}")
    work = draw_work(dice)
    if kind == "no send":
        work = replace(work, mesh=dice.choice(PIPELINES), fsdp=False)
    if kind == "order":  # takes two communicators
        work = replace(work, fsdp=False, world_every=1)
    fault = Injected(dice, kind, work.mesh)
    return Job(seed, work, dice.choice([1, 2, 4]), fault), fault


@contextmanager
def replayable(seed: int, job: Job) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"replay with FTRAIN_SEED={seed}; {job.work}; {vars(job.change)}; {job.per_node} ranks a node")
        error.add_note("\n".join(f"{at - job.start:.2f} {verdict}" for at, verdict in job.verdicts))
        raise


@pytest.mark.parametrize("kind", ["stop", "loop", "sleep", "gone", "stop inside"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_that_hangs_is_named_within_a_second(seed: int, kind: str) -> None:
    job, fault = draw(seed, kind)
    with replayable(seed, job):
        latency, verdict = first(job)
        assert verdict.kind == Kind.HANG
        assert verdict.ranks == (fault.rank,)
        assert verdict.confidence >= 0.5
        assert latency <= LATENCY_SECONDS_MAX


@pytest.mark.parametrize("kind", ["skip", "op", "shape", "order", "no send"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_that_departs_from_the_program_is_named_as_a_mismatch(seed: int, kind: str) -> None:
    job, fault = draw(seed, kind)
    with replayable(seed, job):
        _, verdict = first(job, 20.0)
        assert verdict.kind == Kind.MISMATCH
        assert verdict.ranks == (fault.rank,)


@pytest.mark.parametrize("mesh", [Mesh(4), Mesh(2, tp=2), Mesh(2, pp=2)], ids=str)
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_where_steps_take_seconds_a_hang_is_named_as_soon_as_history_allows(seed: int, mesh: Mesh) -> None:
    fault = Injected(random.Random(seed), "sleep", mesh)
    work = Work(mesh, 4.0, fsdp=mesh == Mesh(4), world_every=1, noise=lambda dice: dice.lognormvariate(0.0, 0.02))
    job = Job(seed, work, 2, fault)
    with replayable(seed, job):
        job.run(300.0, lambda: bool(job.verdicts))
        (_, verdict), *_ = job.verdicts
        assert (verdict.kind, verdict.ranks) == (Kind.HANG, (fault.rank,))
        waiter = job.ranks[verdict.waits[0].waiter]
        usual = max(waiter.history.usual_seconds(entry.kind) or 0.0 for entry in waiter.outstanding())
        assert verdict.seconds <= 5 * usual + 1.0


INNOCENT = {
    "long first steps": (Innocent("first step", 30.0, 6.0), {}),
    "evaluation by rank 0 while the others wait at a barrier": (Innocent("evaluation", 30.0, every=100), {}),
    "checkpoint in all": (Innocent("checkpoint", 20.0, 3.0, every=40), {}),
    "data stall in all": (Innocent("stall", 5.0, 1.5, every=40), {}),
    "noisy neighbours": (Innocent("nothing", 0.0), {"noise": lambda dice: min(dice.paretovariate(1.5), 12.0)}),
    "uneven stages": (Innocent("nothing", 0.0), {"uneven_stages": (1.0, 3.0)}),
}
SHAPES = [Mesh(4), Mesh(2, tp=2), Mesh(2, pp=2)]


@pytest.mark.parametrize("mesh", SHAPES, ids=str)
@pytest.mark.parametrize("case", INNOCENT)
def test_innocent_jobs_are_left_alone(case: str, mesh: Mesh) -> None:
    change, changes = INNOCENT[case]
    for seed in SEEDS[:1]:
        work = replace(Work(mesh, 0.08, fsdp=mesh.size == mesh.dp, buckets=2, early_receives=True), **changes)
        job = Job(seed, work, 2, change)
        with replayable(seed, job):
            job.run(50.0)
            assert min(rank.step for rank in job.ranks) > 5, "the job does not get on"
            assert job.verdicts == []


REPORTING = {
    "lost": Reporting(lost=lambda dice, node, now: dice.random() < 0.4),
    "lost for seconds": Reporting(lost=lambda dice, node, now: now % 7 > 7 - 1.7 * node),
    "late": Reporting(delay_seconds=lambda dice, node: dice.uniform(0.0, 1.2)),
    "late from one node": Reporting(delay_seconds=lambda dice, node: 1.5 if node == 1 else 0.002),
}


@pytest.mark.parametrize("case", REPORTING)
def test_reports_that_are_late_or_lost_accuse_nobody(case: str) -> None:
    for seed in SEEDS[:2]:
        mesh = random.Random(seed).choice(SHAPES)
        job = Job(seed, Work(mesh, 0.08), 1, Innocent("checkpoint", 4.0, 1.0, every=50), REPORTING[case])
        with replayable(seed, job):
            job.run(25.0)
            assert job.verdicts == []


def test_the_same_seed_gives_the_same_verdicts() -> None:
    def told() -> list[tuple[float, Verdict]]:
        job, _ = draw(3, "loop")
        first(job)
        return job.verdicts

    assert told() == told()
