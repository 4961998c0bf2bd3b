"""Checkpoints on storage in full jobs: written beside the training, and what is left when memory is gone.

Ranks wait before some steps (``--hold``): so that it is known what is in memory and what on storage, and that no job is
over before its faults have come.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from heavy_jobs import EmulatedJob
from jobs import (
    ARGUMENTS,
    PROGRAMS,
    TIMEOUT_SECONDS,
    Job,
    Jobs,
    Outcome,
    assert_same,
    exists,
    holding,
    pids_of,
    ranks_of,
)
from stages import stop

from ftrain_launcher import cli
from ftrain_snapshot.storage import newest

FLAGS = ("--local-nodes", "2", "--snapshot-every", "10", "--durable-every", "10")
"""Training is done with the next snapshot sooner than the one before is protected; so the first one, of step 9, is the
only one that is sure to be taken if nobody waits in between."""
HELD = (10, 20, 30, 40, 50)
"""Where ranks of heavy jobs wait: right after each snapshot."""

StartJob = Callable[..., Job]
StartHeavy = Callable[..., EmulatedJob]
Undisturbed = Callable[[int], Outcome]
Ends = Callable[[int], list[str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "checkpoints")


@pytest.fixture
def start(jobs: Jobs, url: str) -> StartJob:
    """Starts jobs that write to one URL."""

    def start_job(*flags: str, arguments: tuple[str, ...] = ARGUMENTS, **options: str) -> Job:
        flags = (*(flags or FLAGS), "--durable", url)
        return jobs.start(lambda folder: Job(folder, *flags, arguments=arguments, **options))

    return start_job


def wait_durable(job: Job, least: int = 0) -> int:
    """Until a checkpoint from that step on is on storage."""

    def written(status: dict[str, Any]) -> int | None:
        step = status["snapshots"]["durable"]
        return step if step is not None and step >= least else None

    return int(job.wait_for(written, f"a durable checkpoint from step {least} on"))


def wait_writer(job: Job, position: int) -> psutil.Process:
    """A node's writer, as soon as it has begun: its name is that of a forked process, its output has the node's."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for process in psutil.Process(job.process.pid).children(recursive=True):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{process.pid}/comm").read_text()
                output = os.readlink(f"/proc/{process.pid}/fd/2")
                if "-durable-" in name and output.endswith(f"durable-node-{position}.log"):
                    return process
        time.sleep(0.002)
    raise AssertionError(f"no writer on node-{position}\n{job.tail()}")


def go_on(job: EmulatedJob, held: Iterator[int]) -> int:
    """Let the ranks go on to the next step that they wait before, with a snapshot taken; its version."""
    gate = job.node("node-0")
    gate.wait_gate_open()
    step = next(held)
    job.go(step)
    gate.wait_protected(step + 9)
    return step + 9


def kill_a_writer(job: EmulatedJob, url: str, position: int, held: Iterator[int]) -> int:
    """SIGKILL a node's writer once it has claimed its place in the folder; the step that was not written.

    If it was done before, the next snapshot's writer is tried.
    """
    while True:
        go_on(job, held)
        writer = wait_writer(job, position)
        while writer.is_running() and not list(Path(url).glob(f"step-*/ftrain.part{position}.*")):
            time.sleep(0.001)
        with contextlib.suppress(psutil.NoSuchProcess):
            writer.kill()
        failure = job.wait_for(
            lambda s: s["durable"]["writing"] is None and (s["durable"]["failure"] or "none"), "the end of the write"
        )
        if "killed by signal 9" in failure:
            return int(failure.split()[1].rstrip(":"))


def hold_a_writer(job: EmulatedJob, url: str, position: int, held: Iterator[int]) -> psutil.Process:
    """Stop a node's writer before its part is written; if it was done before, the next snapshot's writer is tried."""
    while True:
        go_on(job, held)
        writer = wait_writer(job, position)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            stop(writer.pid)
            parts = sorted(Path(url).glob(f"step-*/ftrain.part{position}.*"))
            if not parts or b'"file":"_' not in parts[-1].read_bytes():
                return writer
            writer.resume()


def test_what_a_job_writes_is_read_by_plain_dcp_and_is_what_it_trained(
    start: StartJob, url: str, tmp_path: Path
) -> None:
    job = start(program="states.py", arguments=("--steps", "20", *holding(10)))
    assert wait_durable(job) == 9
    job.go(10)
    assert job.wait() == 0, job.tail()
    found = newest(url)
    assert found is not None
    assert found.step == 19
    assert len(list(Path(url).iterdir())) == 2
    command = [sys.executable, PROGRAMS / "read_with_dcp.py", found.path, job.out / f"step-{found.step}.pt"]
    done = subprocess.run(
        [*command, tmp_path / "plain.pt"], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.stdout == "same\n", done.stderr


def test_a_killed_writer_costs_one_checkpoint_and_training_goes_on(
    emulated: StartHeavy, url: str, ends_without_a_fault: Ends
) -> None:
    """First that of position 0, which completes the checkpoint; then another."""
    job = emulated(*FLAGS, "--durable", url, hold=HELD)
    pids = {r["rank"]: r["pid"] for r in ranks_of(job.wait_step(0)).values()}
    held = iter((0, *HELD))
    for position in (0, 1):
        lost = kill_a_writer(job, url, position, held)
        assert all(found is None or found.step != lost for found in [newest(url)])
        job.wait_shown(f"the durable checkpoint of step {lost} is not written: node-{position}")
        go_on(job, held)
        later = wait_durable(job, lost + 1)
        assert newest(url).step >= later
    status = job.status()
    assert {r["rank"]: r["pid"] for r in ranks_of(status).values()} == pids
    assert (status["generation"], job.faults()) == (1, [])
    assert status["durable"]["failure"] is None
    for step in held:
        job.go(step)
    assert_same(job, ends_without_a_fault(2))


def test_training_does_not_wait_for_a_writer_and_a_write_outlives_agents_and_controller(
    emulated: StartHeavy, url: str, ends_without_a_fault: Ends
) -> None:
    """The writer is held still until all of them are back: whoever was told what, the checkpoint gets written."""
    job = emulated(*FLAGS, "--durable", url, hold=HELD)
    job.wait_step(0)
    held = iter((0, *HELD))
    writer = hold_a_writer(job, url, 1, held)
    before = newest(url)
    step = job.wait_for(lambda s: s["durable"]["writing"], "a write under way")
    for _ in range(2):
        assert go_on(job, held) > step
    status = job.status()
    assert status["durable"]["writing"] == step
    assert status["durable"]["newest"] == (before and before.step)

    killed = {status["controller"]["pid"], *(n["agent_pid"] for n in status["nodes"])}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def all_back(now: dict[str, Any]) -> bool:
        there = {now["controller"]["pid"], *(n["agent_pid"] for n in now["nodes"])}
        return None not in there and not there & killed

    job.wait_for(all_back, "agents and controller")
    writer.resume()
    wait_durable(job, step)
    job.wait_shown(f"the durable checkpoint of step {step} is written")
    assert newest(url).step >= step
    assert (job.status()["generation"], job.faults()) == (1, [])
    for held_step in held:
        job.go(held_step)
    assert_same(job, ends_without_a_fault(2))


def test_all_nodes_lost_at_once_go_on_from_storage(start: StartJob, undisturbed: Undisturbed) -> None:
    """Some, but more than parity replaces: see test_snapshot_stages."""
    job = start(arguments=(*ARGUMENTS, *holding(10, 15)))
    assert wait_durable(job) == 9
    job.go(10)
    job.wait_step(14)
    job.kill_nodes("node-0", "node-1")
    job.go(15)
    assert_same(job, undisturbed(2).ends())
    incident = job.faults()[0]
    assert (incident["kind"], incident["resumed_from"]) == ("node_lost", 9)
    assert incident["seconds"] is not None
    assert "after step 9, from " in job.tail()


def test_a_job_that_was_killed_goes_on_when_it_is_started_again(start: StartJob, undisturbed: Undisturbed) -> None:
    first = start(arguments=(*ARGUMENTS, *holding(10)))
    assert wait_durable(first) == 9
    processes = pids_of(first.status())
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 143
    assert not any(map(exists, processes))
    assert not first.ends()

    second = start()
    assert_same(second, undisturbed(2).ends())
    assert min(second.steps(0)) == 10
    assert "after step 9, from " in second.tail()

    third = start()  # of a job that has finished, little or nothing is left to be done again
    assert_same(third, undisturbed(2).ends())
    assert "to begin anew instead, give --durable another URL" in third.tail()

    other = start("--local-nodes", "1")  # of another size: see test_elastic
    assert other.wait() == 0, other.tail()
    assert "1 nodes, 1 ranks, after step" in other.tail()
    assert ", re-sharded, from " in other.tail()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--durable-every", "3"), "--durable-every 3: say with --durable URL where checkpoints go"),
        (("--durable", "x", "--durable-every", "0"), "--durable-every must be at least 1, not 0"),
        (("--durable", "x", "--durable-keep", "0"), "--durable-keep must be at least 1, not 0"),
        (("--durable", "nope://x"), "--durable nope://x: Protocol not known: nope"),
        (("--durable", "file:///"), "--durable file:///: a URL names a protocol and a place, like s3://bucket/folder"),
        (("--durable", "://x"), "--durable ://x: a URL names a protocol and a place, like s3://bucket/folder"),
        (("--durable", "/etc/passwd/x"), "--durable /etc/passwd/x: [Errno 20] Not a directory: '/etc/passwd/x'"),
        (("--durable", "memory://x"), "--durable memory://x: that is the memory of one process, which ends with it"),
        (("--durable", " "), "--durable: give a folder or a URL like s3://bucket/folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *flags, str(PROGRAMS / "train.py")])
    assert (ended.value.code, *capsys.readouterr()) == (2, "", f"ftrain: error: {said}\n")
