"""The disk of the controller's journal stands still for longer than anybody may be silent: nobody is given up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import ARGUMENTS, Job, Outcome, holding, ranks_of
from needs import require_loop_mounts

from ftrain_launcher import query
from ftrain_launcher.jobs import JobFolder

NODES = 3
HELD = 20
STALL_SECONDS = 11.0
"""Also longer than a node may take to stop, as it is told to while nobody can be told anything."""
TIMEOUTS = ("--heartbeat-timeout-seconds", "2", "--agent-grace-seconds", "2")
ANSWER_SECONDS_MAX = 2.0
DISK_BYTES = 16 * 2**20


class Disk:
    """A file mounted as a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.mount = folder / "disk"
        self.mount.mkdir()
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, timeout=30)
        subprocess.run(["mount", "-o", "loop", str(image), str(self.mount)], check=True, timeout=30)
        self.frozen = False

    def freeze(self) -> None:
        """Whoever writes waits."""
        subprocess.run(["fsfreeze", "--freeze", str(self.mount)], check=True, timeout=30)
        self.frozen = True

    def thaw(self) -> None:
        if self.frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(self.mount)], check=True, timeout=30)
            self.frozen = False


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    require_loop_mounts()
    disk = Disk(tmp_path)
    yield disk
    disk.thaw()
    subprocess.run(["umount", str(disk.mount)], check=True, timeout=30)


@pytest.fixture
def job(disk: Disk, tmp_path: Path) -> Iterator[Job]:
    """Closed before its disk is."""
    job = Job(tmp_path / "job", "--local-nodes", str(NODES), *TIMEOUTS, arguments=(*ARGUMENTS, *holding(HELD)))
    yield job
    disk.thaw()
    job.close()


def move_journal(job: Job, disk: Disk) -> None:
    """Onto that disk, while the controller is killed and its launcher stands still."""
    folder = JobFolder(job.folder / "home" / "jobs" / job.name)
    endpoint = folder.endpoint()
    assert endpoint is not None
    assert endpoint.pid is not None
    job.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(endpoint.pid, signal.SIGKILL)
        there = disk.mount / "journal.jsonl"
        shutil.move(folder.journal, there)
        folder.journal.symlink_to(there)
    finally:
        job.process.send_signal(signal.SIGCONT)


def waits_for_disk(pid: int) -> bool:
    """Whether a thread of a process stands in a write that no signal ends."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return any((thread / "stat").read_text().rpartition(")")[2].split()[0] == "D" for thread in threads)


@pytest.mark.timeout(200)
def test_nobody_is_missed_while_the_journals_disk_stands_still(
    job: Job, disk: Disk, undisturbed: Callable[[int], Outcome]
) -> None:
    before = job.wait_for(_all_run(1), "generation 1")
    move_journal(job, disk)
    status = job.wait_for(
        lambda s: s if _all_run(1)(s) and s["controller"]["pid"] != before["controller"]["pid"] else None,
        "the nodes, heard again",
    )
    controller = status["controller"]["pid"]
    disk.freeze()
    job.go(HELD)
    job.kill_rank(1)
    job.wait_for(lambda s: s["state"] != "running", "the loss to be noticed")
    began, folder = time.monotonic(), JobFolder(job.folder / "home" / "jobs" / job.name)
    while time.monotonic() < began + STALL_SECONDS:  # the length of the fault
        asked = time.monotonic()
        status = query.ask(folder, "/api/status", wait_seconds=ANSWER_SECONDS_MAX)
        assert time.monotonic() - asked < ANSWER_SECONDS_MAX
        assert [n["state"] for n in status["nodes"]] == ["active"] * NODES
        assert status["controller"]["pid"] == controller
        assert waits_for_disk(controller)
        time.sleep(0.2)
    assert not any("generation 2" in line for line in job.log.read_text().splitlines())
    disk.thaw()
    after = job.wait_for(_all_run(2), "generation 2")
    assert {n["agent_pid"] for n in after["nodes"]} == {n["agent_pid"] for n in before["nodes"]}
    assert after["controller"]["pid"] == controller
    assert job.wait() == 0, job.tail()
    assert len(job.ask("incidents")["incidents"]) == 1
    assert "is lost" not in job.log.read_text()
    assert job.ends() == undisturbed(NODES).ends()


def _all_run(generation: int) -> Callable[[dict], dict | None]:
    """All nodes are heard, and all ranks of a generation have a process."""

    def found(status: dict) -> dict | None:
        ranks = ranks_of(status)
        heard = [n for n in status["nodes"] if n["state"] == "active"]
        there = len(ranks) == NODES and all(r["pid"] for r in ranks.values())
        runs = status["state"] == "running" and status["generation"] == generation
        return status if runs and len(heard) == NODES and there else None

    return found
