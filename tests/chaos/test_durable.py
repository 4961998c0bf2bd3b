"""Checkpoints on storage in full jobs: written beside the training, and what is left when memory is gone."""

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
from jobs import PROGRAMS, Job, ranks_of

from ftrain_snapshot.storage import newest

STEPS = 150
EVERY = 20
NODES = 4
ARGUMENTS = ("--steps", str(STEPS))

StartJob = Callable[..., Job]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "checkpoints")


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[StartJob]:
    """Starts jobs that write to one URL; at the test's end nothing of them may be left."""
    jobs: list[Job] = []

    def start_job(nodes: int = NODES, arguments: tuple[str, ...] = ARGUMENTS, program: str = "train.py") -> Job:
        flags = ("--local-nodes", str(nodes), "--durable", url, "--durable-every", str(EVERY))
        jobs.append(Job(tmp_path / str(len(jobs)), *flags, program=program, arguments=arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """How the same training ends without a fault and without storage, by number of nodes."""
    ends = {}
    for nodes in (2, NODES):
        folder = tmp_path_factory.mktemp(f"undisturbed-{nodes}")
        job = Job(folder, "--local-nodes", str(nodes), arguments=ARGUMENTS)
        assert job.wait() == 0, job.tail()
        job.close()
        ends[nodes] = job.ends()
    return ends


def wait_durable(job: Job, least: int = 0) -> int:
    """Until a checkpoint from that step on is on storage."""

    def written(status: dict[str, Any]) -> int | None:
        step = status["snapshots"]["durable"]
        return step if step is not None and step >= least else None

    return int(job.wait_for(written, f"a durable checkpoint from step {least} on"))


def wait_writer(job: Job, node: str) -> psutil.Process:
    """A node's writer, as soon as it has begun: its name is that of a forked process, its output has the node's."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process(job.process.pid).children(recursive=True):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{process.pid}/comm").read_text()
                if "-durable-" in name and os.readlink(f"/proc/{process.pid}/fd/2").endswith(f"durable-{node}.log"):
                    return process
        time.sleep(0.002)
    raise AssertionError(f"no writer on {node}\n{job.tail()}")


def kill_a_writer(job: Job, url: str, position: int) -> int:
    """SIGKILL a node's writer once it has claimed its place in the folder; the step that was not written."""
    node = f"node-{position}"
    while True:
        writer = wait_writer(job, node)
        while writer.is_running() and not list(Path(url).glob(f"step-*/ftrain.part{position}.*")):
            time.sleep(0.001)
        with contextlib.suppress(psutil.NoSuchProcess):
            writer.kill()
        failure = job.wait_for(
            lambda s: s["durable"]["writing"] is None and (s["durable"]["failure"] or "none"), "the end of the write"
        )
        if "killed by signal 9" in failure:
            return int(failure.split()[1].rstrip(":"))


def assert_same(job: Job, ends: list[str]) -> None:
    assert job.wait() == 0, job.tail()
    assert job.ends() == ends


def test_what_a_job_writes_is_read_by_plain_dcp_and_is_what_it_trained(
    start: StartJob, url: str, tmp_path: Path
) -> None:
    job = start(2, program="states.py")
    assert job.wait() == 0, job.tail()
    found = newest(url)
    assert found is not None
    assert found.step >= STEPS - EVERY - 1
    assert len(list(Path(url).iterdir())) == 2
    command = [sys.executable, PROGRAMS / "read_with_dcp.py", found.path, job.out / f"step-{found.step}.pt"]
    done = subprocess.run(
        [*command, tmp_path / "plain.pt"], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.stdout == "same\n", done.stderr


@pytest.mark.parametrize("position", [0, 1])
def test_a_killed_writer_costs_one_checkpoint_and_training_goes_on(
    start: StartJob, url: str, undisturbed: dict[int, list[str]], position: int
) -> None:
    job = start(2)
    pids = {r["rank"]: r["pid"] for r in ranks_of(job.wait_step(0)).values()}
    lost = kill_a_writer(job, url, position)
    assert all(found is None or found.step != lost for found in [newest(url)])
    assert f"the durable checkpoint of step {lost} is not written: node-{position}" in job.tail()
    later = wait_durable(job, lost + 1)
    assert newest(url).step >= later
    status = job.status()
    assert {r["rank"]: r["pid"] for r in ranks_of(status).values() if r["pid"]}.items() <= pids.items()
    assert (status["generation"], status["incidents"]) == (1, 0)
    assert status["durable"]["failure"] is None
    assert_same(job, undisturbed[2])


def test_training_does_not_wait_for_a_writer_that_hangs(start: StartJob, undisturbed: dict[int, list[str]]) -> None:
    job = start(2)
    writer = wait_writer(job, "node-1")
    writer.suspend()
    protected = job.status()["snapshots"]["protected"]
    status = job.wait_for(lambda s: s if s["snapshots"]["protected"] > protected + EVERY + 5 else None, "snapshots")
    assert status["durable"]["writing"] is not None
    assert status["durable"]["newest"] is None
    writer.kill()
    wait_durable(job)
    assert_same(job, undisturbed[2])


def test_two_nodes_lost_at_once_go_on_from_storage(start: StartJob, undisturbed: dict[int, list[str]]) -> None:
    job = start()
    step = wait_durable(job)
    job.wait_step(step + 5)
    job.kill_node("node-1")
    job.kill_node("node-3")
    job.wait_for(lambda s: s["generation"] > 1 and s["state"] == "running", "the recovery")
    assert_same(job, undisturbed[NODES])
    incident = job.ask("incidents")["incidents"][0]
    assert incident["kind"] == "node_lost"
    assert incident["resumed_from"] >= step
    assert incident["steps_lost"] >= 1
    assert incident["seconds"] is not None
    assert f"after step {incident['resumed_from']}, from " in job.tail()


def test_all_nodes_lost_at_once_go_on_from_storage(start: StartJob, undisturbed: dict[int, list[str]]) -> None:
    job = start(2)
    step = wait_durable(job)
    job.kill_node("node-0")
    job.kill_node("node-1")
    assert_same(job, undisturbed[2])
    assert job.ask("incidents")["incidents"][0]["resumed_from"] >= step


def test_a_job_that_was_killed_goes_on_when_it_is_started_again(
    start: StartJob, undisturbed: dict[int, list[str]]
) -> None:
    first = start(2)
    step = wait_durable(first)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 143
    assert not first.ends()

    second = start(2)
    assert_same(second, undisturbed[2])
    assert min(second.steps(0)) > step - EVERY
    assert min(second.steps(0)) > 0
    assert f"after step {min(second.steps(0)) - 1}, from " in second.tail()

    third = start(2)  # of a job that has finished, little or nothing is left to be done again
    assert_same(third, undisturbed[2])
    assert "to begin anew instead, give --durable another URL" in third.tail()


def test_another_number_of_ranks_is_refused_before_anything_starts(start: StartJob) -> None:
    assert start(1, arguments=("--steps", "25")).wait() == 0
    job = start(2)
    assert job.wait() == 2
    assert "was written by 1 ranks, this job has 2: resuming needs as many" in job.tail(1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--durable-every", "3"), "--durable-every 3: say with --durable URL where checkpoints go"),
        (("--durable", "x", "--durable-every", "0"), "--durable-every must be at least 1, not 0"),
        (("--durable", "x", "--durable-keep", "0"), "--durable-keep must be at least 1, not 0"),
        (("--durable", "nope://x"), "--durable nope://x: Protocol not known: nope"),
        (("--durable", "/etc/passwd/x"), "--durable /etc/passwd/x: [Errno 20] Not a directory: '/etc/passwd/x'"),
        (("--durable", "memory://x"), "--durable memory://x: that is the memory of one process, which ends with it"),
        (("--durable", " "), "--durable: give a folder or a URL like s3://bucket/folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    job = Job(tmp_path / "job", *flags)
    assert job.wait() == 2
    assert job.tail() == f"ftrain: error: {said}"
    job.close()


def test_a_write_outlives_the_agents_and_the_controller(
    start: StartJob, url: str, undisturbed: dict[int, list[str]]
) -> None:
    """The writer is held still until all of them are back: whoever was told what, the checkpoint gets written."""
    job = start(2)
    writer = wait_writer(job, "node-1")
    writer.suspend()
    step = job.wait_for(lambda s: s["durable"]["writing"], "a write under way")
    status = job.status()
    killed = {status["controller"]["pid"], *(n["agent_pid"] for n in status["nodes"])}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def all_back(now: dict[str, Any]) -> bool:
        there = {now["controller"]["pid"], *(n["agent_pid"] for n in now["nodes"])}
        return None not in there and not there & killed

    job.wait_for(all_back, "agents and controller")
    writer.resume()
    assert wait_durable(job) == step
    assert newest(url).step >= step
    assert (job.status()["generation"], job.status()["incidents"]) == (1, 0)
    assert_same(job, undisturbed[2])
