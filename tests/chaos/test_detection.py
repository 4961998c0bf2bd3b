"""Ranks that hang, stray or lag in full jobs, and jobs that only look as if they did: what is said, and what follows.

The campaign over all faults and shapes, with its times, is scripts/bench/detect.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Job, Jobs, Outcome, holding, ranks_of

from ftrain_launcher.job.policy import EXIT_PROGRAM

FLAGS = ("--local-nodes", "2", "--nproc-per-node", "2")
RANKS = 4
NAMED_SECONDS = 25.0
"""A second in the benchmark; here the machine may be busy, and a rank that is given no processor hangs the later. An
operation without a history may take longer."""

StartJob = Callable[..., Job]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    """Starts jobs of two nodes with two ranks each."""

    def start_job(*flags: str, program: str, arguments: tuple[str, ...]) -> Job:
        return jobs.start(lambda folder: Job(folder, *FLAGS, *flags, program=program, arguments=arguments))

    return start_job


def told(job: Job, found: dict[str, Any]) -> dict[str, Any]:
    """``ftrain incidents NUMBER --json`` of one of them."""
    number = str(found["number"])
    command = [sys.executable, "-m", "ftrain_launcher.cli", "incidents", number, "--job", job.name, "--json"]
    done = subprocess.run(command, capture_output=True, env=job.environment, timeout=TIMEOUT_SECONDS, check=True)
    return dict(json.loads(done.stdout)["incident"])


def stop(job: Job, rank: int) -> int:
    """SIGSTOP a worker from outside; its pid."""
    status = job.status()
    assert status is not None
    pid = int(ranks_of(status)[rank]["pid"])
    os.kill(pid, signal.SIGSTOP)
    return pid


def assert_named(found: dict[str, Any], kind: str, rank: int) -> None:
    assert found["kind"] == kind, found
    assert [suspect["rank"] for suspect in found["suspects"]] == [rank], found


def test_a_stopped_rank_and_one_that_holds_the_gil_are_named_and_replaced(
    start: StartJob, undisturbed: Callable[[int], Outcome]
) -> None:
    """No signal but SIGKILL ends the first, and no thread of the second can tell that it hangs."""
    job = start(program="train.py", arguments=(*ARGUMENTS, "--spin-at", "80", *holding(60)))
    pids = {rank: entry["pid"] for rank, entry in ranks_of(job.wait_step(59)).items()}
    assert stop(job, 3) == pids[3]
    stopped = time.time()
    job.go(60)
    assert job.wait() == 0, job.tail()
    first, second = (told(job, found) for found in job.faults())
    assert_named(first, "hang", 3)
    assert "stopped" in first["reason"]
    waiters = {wait["waiter"] for wait in first["verdicts"][0]["waits"]}
    assert waiters, first
    assert waiters <= {0, 1, 2}, "on a busy machine not all of them wait by then"
    assert 0 < first["timeline"]["named"] - stopped < NAMED_SECONDS
    spun = (job.out / "spun").stat().st_mtime
    assert_named(second, "hang", 1)
    assert 0 < second["timeline"]["named"] - spun < NAMED_SECONDS
    assert job.ends() == undisturbed(RANKS).ends()
    assert len(job.ends()) == RANKS


def test_a_rank_that_skips_an_operation_is_named_and_ends_the_job(start: StartJob) -> None:
    """The same mismatch at the same step again is the program's error: to restart for ever would help nobody."""
    job = start(program="regular.py", arguments=("--steps", "40", "--skip-at", "20"))
    assert job.wait() == EXIT_PROGRAM, job.tail()
    assert sorted(path.name for path in job.out.glob("*")) == ["skipped-1", "skipped-2"]
    found = job.faults()
    assert len(found) == 2
    for each in found:
        assert_named(told(job, each), "mismatch", 2)
    assert "rank 2" in job.tail(5)


def test_evaluation_and_checkpoints_are_no_faults_and_a_warning_changes_nothing(start: StartJob) -> None:
    """Rank 0 evaluates alone, all save a checkpoint, unevenly; then one stops for a while, then one is slow."""
    arguments = ("--steps", "100", "--evaluate-at", "20", "--checkpoint-at", "25", "--slow-from", "40")
    job = start("--detect", "warn", program="regular.py", arguments=(*arguments, *holding(40)))
    job.wait_step(39)
    assert job.faults() == [], job.tail()
    pid = stop(job, 1)
    job.go(40)
    job.wait_for(lambda s: s["incidents"] > 0 and job.faults(), "a warning")
    os.kill(pid, signal.SIGCONT)
    assert job.wait() == 0, job.tail()
    first = told(job, job.faults()[0])
    second = told(job, [found for found in job.incidents() if found["kind"] == "slow"][-1])
    assert_named(first, "hang", 1)
    assert_named(second, "slow", 3)
    assert first["harmless"]
    assert second["harmless"]
    assert [path.read_text() for path in job.out.glob("end-*")] == ["generation 1"] * RANKS


def test_a_rank_that_stalls_at_the_same_steps_in_each_run_does_not_end_the_job(start: StartJob) -> None:
    """The first stall may be called a hang. It is not each time, though the script begins anew, and others follow."""
    job = start(program="stalls.py", arguments=())
    assert job.wait() == 0, job.tail()
    assert len(list(job.out.glob("end-*"))) == RANKS
    faults = [told(job, found) for found in job.faults()]
    assert len(faults) <= 3, job.tail()
    for found in faults:
        assert_named(found, "hang", 1)
        assert found["over"].startswith("rank 1 went on by itself"), found
