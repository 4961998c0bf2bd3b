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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import ARGUMENTS, Job, Outcome, holding, ranks_of

from ftrain_launcher.job.policy import EXIT_PROGRAM

FLAGS = ("--local-nodes", "2", "--nproc-per-node", "2")
RANKS = 4
NAMED_SECONDS = 5.0
"""A second in the benchmark; here another test trains beside this one."""

StartJob = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartJob]:
    """Starts jobs of two nodes with two ranks each; at the test's end nothing may be left of them."""
    jobs: list[Job] = []

    def start_job(*flags: str, program: str, arguments: tuple[str, ...]) -> Job:
        jobs.append(Job(tmp_path / str(len(jobs)), *FLAGS, *flags, program=program, arguments=arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()


def incident(job: Job, number: int) -> dict[str, Any]:
    """``ftrain incidents NUMBER --json``."""
    command = [sys.executable, "-m", "ftrain_launcher.cli", "incidents", str(number), "--job", job.name, "--json"]
    done = subprocess.run(command, capture_output=True, env=job.environment, timeout=30, check=True)
    return dict(json.loads(done.stdout)["incident"])


def wait_incidents(job: Job, count: int) -> None:
    job.wait_for(lambda s: s["incidents"] == count and s["state"] == "running", f"incident {count}")


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
    wait_incidents(job, 2)
    assert job.wait() == 0, job.tail()
    first, second = incident(job, 1), incident(job, 2)
    assert_named(first, "hang", 3)
    assert "stopped" in first["reason"]
    assert {wait["waiter"] for wait in first["verdicts"][0]["waits"]} == {0, 1, 2}
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
    for number in (1, 2):
        assert_named(incident(job, number), "mismatch", 2)
    assert "rank 2" in job.tail(5)


def test_evaluation_and_checkpoints_are_no_faults_and_a_warning_changes_nothing(start: StartJob) -> None:
    """Rank 0 evaluates alone, all save a checkpoint, unevenly; then one stops for a while, then one is slow."""
    arguments = ("--steps", "100", "--evaluate-at", "20", "--checkpoint-at", "25", "--slow-from", "40")
    job = start("--detect", "warn", program="regular.py", arguments=(*arguments, *holding(40)))
    quiet = job.wait_step(39)
    assert quiet["incidents"] == 0, job.tail()
    pid = stop(job, 1)
    job.go(40)
    job.wait_for(lambda s: s["incidents"] == 1, "a warning")
    os.kill(pid, signal.SIGCONT)
    assert job.wait() == 0, job.tail()
    first, second = incident(job, 1), incident(job, 2)
    assert_named(first, "hang", 1)
    assert_named(second, "slow", 3)
    assert first["harmless"]
    assert second["harmless"]
    assert [path.read_text() for path in job.out.glob("end-*")] == ["generation 1"] * RANKS
