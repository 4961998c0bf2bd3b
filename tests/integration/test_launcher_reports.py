"""Reports on a real job: the trace of its last steps while it runs, and the story of a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import TIMEOUT_SECONDS, Job, holding
from traces import check_trace, of_rank

HELD, HELD_AGAIN = 30, 35
STEPS = 40
WANTED = 10


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(
        tmp_path / "job",
        *("--local-nodes", "2", "--nproc-per-node", "2"),
        arguments=("--steps", str(STEPS), *holding(HELD, HELD_AGAIN)),
    )
    try:
        yield job
    finally:
        job.close()


def command(job: Job, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftrain_launcher.cli", *arguments, "--job", job.name],
        capture_output=True,
        text=True,
        env=job.environment,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def all_reduces(slices: list[dict[str, Any]], rank: int) -> dict[tuple[str, int], tuple[float, float]]:
    """When a rank entered and left each, in microseconds of the trace."""
    return {
        (e["args"]["communicator"], e["args"]["seq"]): (e["ts"], e["ts"] + e["dur"])
        for e in of_rank(slices, rank)
        if e["name"] == "all_reduce"
    }


def check_trace_of(job: Job, path: Path) -> None:
    done = command(job, "trace", "--out", str(path), "--last-steps", str(WANTED), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ranks"], report["missing"], done.stderr) == (4, [], "")
    document = json.loads(path.read_text())
    slices = check_trace(document)
    assert report["events"] == len(document["traceEvents"])
    for rank in range(4):
        steps = [e for e in of_rank(slices, rank) if e["cat"] == "step"]
        assert [e["args"]["step"] for e in steps] == list(range(HELD - WANTED, HELD + 1))
        assert [e["args"]["step"] for e in steps if "pending" in e["args"]] == [HELD]
    ranks = [all_reduces(slices, rank) for rank in range(4)]
    common = set.intersection(*map(set, ranks))
    assert len(common) >= WANTED, "DDP reduces at least once a step"
    error = 2e6 * report["clock_error_seconds"]
    for key in common:
        entered, left = zip(*(rank[key] for rank in ranks), strict=True)
        assert min(left) >= max(entered) - error, "nobody leaves an all-reduce before all have entered"


def check_story(job: Job, pid: int) -> None:
    (fault,) = job.faults()
    number = str(fault["number"])
    lines = command(job, "incidents", number).stdout.splitlines()
    assert lines[0].startswith(f"incident {number}: worker_exit: rank 1 on node-0 was killed by SIGKILL")
    assert lines[1].startswith("it ended generation 1; training again after ")
    assert [line.split("  ")[1] for line in lines[4:9]] == ["fault seen", "decided", "formed", "restored", "first step"]
    assert any("resumed from the snapshot after step" in line for line in lines)
    incident = json.loads(command(job, "incidents", number, "--json").stdout)["incident"]
    assert incident["suspects"] == [{"rank": 1, "node": "node-0", "pid": pid}]
    assert sum(incident["phases"].values()) == pytest.approx(incident["seconds"])
    assert (incident["state"], incident["harmless"]) == ("closed", False)


def test_the_trace_of_a_running_job_and_the_story_of_a_killed_worker(job: Job, tmp_path: Path) -> None:
    job.wait_step(HELD - 1)
    check_trace_of(job, tmp_path / "trace.json")
    pid = job.kill_rank(1)
    job.go(HELD)
    job.wait_for(lambda s: s["state"] == "running" and s["generation"] == 2, "the first step of all ranks")
    check_story(job, pid)
    job.go(HELD_AGAIN)
    assert job.wait() == 0, job.tail()
    check_story(job, pid)  # from the journal
    kept = len(job.incidents())
    unknown = command(job, "incidents", str(kept + 1))
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == f"ftrain: error: no incident {kept + 1}: 1 to {kept} are kept\n"
    ended = command(job, "trace", "--out", str(tmp_path / "late.json"))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "has ended: its records are gone" in ended.stderr
