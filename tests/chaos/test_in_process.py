"""Recovery in the same processes: who survives goes on where it is, the job ends as one that nothing happened to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from jobs import TIMEOUT_SECONDS, Job, Jobs, assert_same, exists, holding, ranks_of

RANKS = 3
STEPS = ("--steps", "30")
START, LAST = 10, 29
"""The ranks wait before these steps, if there is something to be seen until then."""
STATE_BYTES = 4 * (3 * (16 * 64 + 64 + 64 + 1) + 4)
"""Of ``stays.py``: parameters, the two moments of each, and four counters of steps."""
GENERATIONS = 50
GENERATIONS_SECONDS_MAX = 550.0
"""Of so many: a minute where nothing else runs."""

StartJob = Callable[..., Job]


class Look(NamedTuple):
    """What a rank wrote down when its function began, or was about to return."""

    generation: int
    pid: int
    threads: int
    files: int
    resident_bytes: int


def looks(job: Job, rank: int) -> list[Look]:
    return [Look(*map(int, line.split())) for line in (job.out / f"seen-{rank}").read_text().splitlines()]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    """Starts jobs of three ranks on one node."""

    def start_job(*flags: str, arguments: tuple[str, ...] = ()) -> Job:
        shape = ("--local-nodes", "1", "--nproc-per-node", str(RANKS), "--in-process", *flags)
        arguments = (*STEPS, *arguments)
        return jobs.start(lambda folder: Job(folder, *shape, program="stays.py", arguments=arguments))

    return start_job


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the ranks of a job hold at its end that nothing happened to, and whose ranks cannot stay."""
    shape = ("--local-nodes", "1", "--nproc-per-node", str(RANKS))
    job = Job(tmp_path_factory.mktemp("quiet"), *shape, program="stays.py", arguments=STEPS)
    assert job.wait() == 0, job.tail()
    job.close()
    return job.ends()


def pids_at(job: Job, step: int) -> dict[int, int]:
    return {rank: entry["pid"] for rank, entry in ranks_of(job.wait_step(step)).items()}


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def wait_ended(*pids: int) -> None:
    wait_until(lambda: not any(map(exists, pids)), f"{pids} have ended")


def standby_of(job: Job) -> int | None:
    """The pid of the process that waits for a rank: known by its log, and by its line to the agent."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            output = os.readlink(process / "fd" / "1")
            ours = output.startswith(str(job.folder)) and "standby" in output
            if ours and psutil.Process(int(process.name)).net_connections("unix"):
                return int(process.name)
    return None


def pids(job: Job, rank: int) -> set[int]:
    """Of all processes that ran the function as this rank."""
    return {look.pid for look in looks(job, rank)}


def test_survivors_keep_their_processes_and_a_standby_takes_the_lost_rank(start: StartJob, quiet: list[str]) -> None:
    """They keep their tensors, too: all stand where the newest snapshot was taken."""
    job = start("--standby", "1", arguments=holding(START - 1, START, LAST))
    before = pids_at(job, START - 2)
    wait_until(lambda: standby_of(job) is not None, "a standby waits")
    standby = standby_of(job)
    job.node("node-0").wait_rest()  # so that the next step is captured
    job.go(START - 1)
    job.node("node-0").wait_sealed(START - 1)
    assert job.kill_rank(1) == before[1]
    job.wait_for(lambda s: s["generation"] == 2, "the next generation")
    job.go(START)
    assert pids_at(job, LAST - 1) == {**before, 1: standby}
    wait_until(lambda: standby_of(job) not in (None, standby), "another standby waits")
    job.go(LAST)
    assert_same(job, quiet)
    assert [looks(job, rank)[-1].generation for rank in range(RANKS)] == [2] * RANKS
    (fault,) = job.faults()
    assert (fault["rung"], fault["steps_lost"]) == ("same processes", 0)
    # The newcomer read everything, and nobody else anything.
    assert (fault["ranks_kept"], fault["ranks"]) == (RANKS - 1, RANKS)
    assert fault["read_bytes"] == STATE_BYTES


@pytest.mark.parametrize(
    ("what", "stays"),
    [
        (("--swallow", "Exception"), True),
        (("--swallow", "BaseException"), False),
        (("--sleep-at", "12"), True),
        (("--sum-at", "12"), False),
    ],
    ids=["swallows-errors", "swallows-everything", "sleeps", "holds-the-GIL"],
)
def test_who_can_be_made_to_leave_stays_and_who_cannot_is_replaced(
    what: tuple[str, ...], stays: bool, start: StartJob, quiet: list[str]
) -> None:
    """Rank 1 kills itself in step 12; rank 0 is where it cannot easily be got out of."""
    dies = ("--die-each", "12", "--generations", "2")
    grace = "5" if stays else "3"  # a busy machine is slow; who does not leave is waited for
    job = start("--abort-grace-seconds", grace, "--detect", "off", arguments=(*dies, *what))
    assert_same(job, quiet)
    assert len(pids(job, 1)) == 2
    assert len(pids(job, 2)) == 1
    assert len(pids(job, 0)) == (1 if stays else 2)
    if "--swallow" in what:
        assert (job.out / "in-step-12").exists()
        swallowed = job.out / "swallowed"  # gloo's error may come before the word to leave, or with it
        caught = swallowed.read_text().split() if swallowed.exists() else []
        assert ("GenerationEnded" in caught) is not stays
    assert all(i["steps_lost"] == 0 for i in job.faults())


def test_a_rank_that_dies_while_the_job_recovers_costs_one_more_generation(start: StartJob, quiet: list[str]) -> None:
    job = start("--standby", "1", arguments=("--die-each", "12", "--generations", "2", "--die-early", "2"))
    assert_same(job, quiet)
    assert {look.generation for look in looks(job, 0)} == {1, 2, 3}
    assert len(pids(job, 0)) == 1
    assert len(pids(job, 2)) == 2


def test_two_faults_at_once_end_in_the_same_state(start: StartJob, quiet: list[str], seed: int) -> None:
    """The second rank is killed at some moment of the recovery from the first: leaving, forming, restoring."""
    chance = random.Random(seed)
    holds = (8, 16, 24)
    job = start("--standby", "1", arguments=holding(*holds))
    for step in holds:
        there = pids_at(job, step - 1)
        first, second = chance.sample(range(RANKS), 2)
        os.kill(there[first], signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 0.4))
        os.kill(there[second], signal.SIGKILL)
        wait_ended(there[first], there[second])
        job.go(step)
    assert_same(job, quiet)


def stores_of(job: Job) -> list[int]:
    """The present generation's, and the one that waits for the next."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            output = os.readlink(process / "fd" / "1")
        except OSError:
            continue
        if output.startswith(str(job.folder)) and Path(output).name.startswith("store-"):
            found.append(int(process.name))
    return found


def test_a_rank_is_lost_and_then_what_its_recovery_needs(start: StartJob, quiet: list[str], seed: int) -> None:
    """Given a lost rank, when at some moment of the recovery another process of the node is killed, all is as ever."""
    chance = random.Random(seed)
    needed = ["agent", "daemon", "standby", "store"]
    chance.shuffle(needed)
    holds = range(6, 6 + 6 * len(needed), 6)
    job = start("--standby", "1", "--max-restarts", "20", arguments=holding(*holds))
    for step, what in zip(holds, needed, strict=True):
        there = pids_at(job, step - 1)
        (node,) = job.wait_for(lambda s: s["nodes"][0]["agent_pid"] and s["nodes"], "the agent is connected")
        wait_until(lambda: standby_of(job) is not None and len(stores_of(job)) == 2, "all is ready for a fault")
        found = {"agent": node["agent_pid"], "daemon": node["daemon_pid"], "standby": standby_of(job)}
        second = found[what] if what in found else chance.choice(stores_of(job))
        first = there[chance.randrange(RANKS)]
        os.kill(first, signal.SIGKILL)
        time.sleep(chance.uniform(0.0, 0.3))
        with contextlib.suppress(ProcessLookupError):  # the old generation's store
            os.kill(second, signal.SIGKILL)
        wait_ended(first, second)
        job.go(step)
    assert_same(job, quiet)


def test_fifty_generations_leave_nothing_behind_in_a_process(start: StartJob) -> None:
    dies = ("--steps", "160", "--die-each", "2", "--generations", str(GENERATIONS))
    job = start("--max-restarts", "100", arguments=dies)
    assert job.wait(GENERATIONS_SECONDS_MAX) == 0, job.tail()
    seen = looks(job, 0)
    assert len({look.pid for look in seen}) == 1
    assert seen[-1].generation >= GENERATIONS
    early, late = seen[5], seen[-2]
    assert late.threads <= early.threads
    assert late.files <= early.files
    print(f"\n{(late.resident_bytes - early.resident_bytes) / 2**20:.1f} MiB more after {len(seen)} generations")
    assert late.resident_bytes - early.resident_bytes < 24 << 20
