"""The host of the controller is lost, or cut off, and another candidate takes over (docs/controller.md).

On hosts of namespaces. The job goes on and ends as one that never failed; a minority stops its workers and waits, and
there is one generation after the other, whoever forms them.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Lab
from hosts.job import CONTROLLER_GRACE_SECONDS, TIMEOUTS, HostJob
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Jobs, Outcome, holding, ranks_of
from needs import require_lab
from snapshot_nodes import wait_until

NODES = 3
CANDIDATES = (1, 2)
TAKEOVER_SECONDS_MAX = TIMEOUT_SECONDS

StartJob = Callable[..., "CandidateJob"]


class CandidateJob(HostJob):
    """Its controller begins on host 1, and may go to host 2. Each host has a state folder of its own."""

    leader = 1
    """The host whose controller is asked."""

    def controller_flags(self) -> list[str]:
        return ["--controller-candidates", ",".join(self.lab.address(host) for host in CANDIDATES)]

    def folder_of(self, host: int) -> Path:
        """The job's folder on a host."""
        job = self.home(host) / "jobs" / self.name
        return job if host == 1 else next((job / "hosts").glob(f"h{host}-*"), job)

    def status(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder_of(self.leader) / "status.json").read_bytes())
        except OSError:
            return None

    def leads(self, host: int) -> bool:
        """Whether a host's candidate has written down that it is the controller."""
        try:
            return json.loads((self.folder_of(host) / "leadership.json").read_bytes())["leads"]
        except OSError:
            return False

    def wait_leader(self, host: int) -> None:
        """Wait until a host's candidate is the controller."""
        deadline = time.monotonic() + TAKEOVER_SECONDS_MAX
        while not self.leads(host):
            assert time.monotonic() < deadline, f"{self.tail()}\n{self.log_of(host).read_text()}"
            time.sleep(0.05)
        self.leader, self.process, self.log = host, self.launchers[host], self.log_of(host)

    def start(self, host: int, *flags: str) -> subprocess.Popen[bytes]:
        """As on any host; the controller's launcher stays the one that is watched."""
        process = super().start(host, *flags)
        self.process, self.log = self.launchers.get(self.leader, process), self.log_of(self.leader)
        return process

    def workers_on(self, host: int) -> int:
        """How many training processes run on a host (its zygote's children)."""
        record = next((self.lab.root(host) / "dev" / "shm").glob(f"ftrain-{self.name}*/node-*/node.json"), None)
        return 0 if record is None else len(json.loads(record.read_bytes())["workers"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_lab()
    with Lab(5) as lab:
        yield lab


@pytest.fixture
def start(lab: Lab, jobs: Jobs, tmp_path: Path) -> StartJob:
    """Starts a job of three nodes: on hosts 1 (which leads), 3 and 4, say."""

    def start_job(*hosts: int, hold: tuple[int, ...], spares: int) -> CandidateJob:
        secret = tmp_path / "secret"
        secret.write_text("what only these hosts know")
        secret.chmod(0o600)
        flags = ("--nnodes", str(NODES), "--spares", str(spares), *TIMEOUTS, "--secret-file", str(secret))
        arguments = (*ARGUMENTS, *holding(*hold))
        job = jobs.start(lambda folder: CandidateJob(lab, folder, *flags, arguments=arguments, own_state=True))
        job.start_all(*hosts, nodes=NODES)
        return job

    return start_job


def test_the_controllers_host_crashes_while_the_job_trains_on_the_others(
    lab: Lab, start: StartJob, undisturbed: Callable[[int], Outcome]
) -> None:
    """Host 1 holds a rank as well: a spare takes its place, on the word of host 2's controller.

    Started again, it joins the job that it began, as a spare and as a candidate that stands by.
    """
    job = start(1, 2, 3, 4, hold=(20, 119), spares=1)
    job.wait_for(lambda s: len(s["nodes"]) == 4 and s["nodes"][3]["state"] == "idle", "a spare")
    job.wait_step(19)
    lab.crash(1)
    began = time.monotonic()
    job.wait_leader(2)
    print(f"taken over {time.monotonic() - began:.1f} s after the crash")
    job.go(20)
    job.wait_recovered(1)
    job.wait_step(118)
    assert [n["position"] for n in job.status()["nodes"] if n["hostname"] == "h4"] == [0]
    assert job.ask("status", host=3)["state"] == "running"
    lab.heal()
    job.start(1)
    job.wait_for(lambda s: s["nodes"][-1]["hostname"] == "h1" and s["nodes"][-1]["state"] == "idle", "host 1 again")
    job.go(119)
    assert job.wait_all(1, 2, 3, 4) == dict.fromkeys((1, 2, 3, 4), 0), job.log_of(2).read_text()
    assert job.ends() == undisturbed(NODES).ends()


def test_the_controllers_host_is_cut_off_its_island_stops_and_once_healed_it_serves_as_a_spare(
    lab: Lab, start: StartJob, undisturbed: Callable[[int], Outcome]
) -> None:
    job = start(1, 2, 3, 4, hold=(20, 60, 119), spares=1)
    job.wait_for(lambda s: len(s["nodes"]) == 4 and s["nodes"][3]["state"] == "idle", "a spare")
    job.wait_step(19)
    assert job.workers_on(1) == 1
    lab.cut(1)
    job.wait_leader(2)
    job.go(20)
    job.wait_recovered(1)
    job.wait_step(59)
    assert job.leads(1)  # as far as it knows
    deadline = time.monotonic() + 4 * CONTROLLER_GRACE_SECONDS
    while job.workers_on(1):
        assert time.monotonic() < deadline, "the island still trains"
        time.sleep(0.05)
    lab.heal()
    job.wait_for(
        lambda s: s["nodes"][-1]["hostname"] == "h1" and s["nodes"][-1]["state"] == "idle", "host 1 as a spare"
    )
    assert not job.leads(1)
    job.go(60)
    job.go(119)
    assert job.wait_all(1, 2, 3, 4) == dict.fromkeys((1, 2, 3, 4), 0), job.log_of(2).read_text()
    assert job.ends() == undisturbed(NODES).ends()


def journal_keeper(lab: Lab, host: int) -> str:
    """The pid, as its host sees it, of the process that has the journal open: the controller, or one that stands by."""
    look = "for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q 'journal\\.' && basename $p; done; true"
    pids = lab.run(host, ["sh", "-c", look])[1].split()
    assert len(pids) == 1, pids
    return pids[0]


def test_a_candidate_that_missed_the_newest_generation_learns_of_it_from_the_nodes(
    lab: Lab, start: StartJob, undisturbed: Callable[[int], Outcome]
) -> None:
    """It stood still while a worker was killed and replaced; then the one that knew is lost with its host."""
    job = start(1, 2, 3, 4, hold=(20, 60, 119), spares=1)
    job.wait_for(lambda s: len(s["nodes"]) == 4 and s["nodes"][3]["state"] == "idle", "a spare")
    job.wait_step(19)
    standby = journal_keeper(lab, 2)
    assert lab.run(2, ["kill", "-STOP", standby])[0] == 0
    assert lab.run(2, ["cat", f"/proc/{standby}/stat"])[1].rpartition(")")[2].split()[0] == "T"
    victim = ranks_of(job.status())[2]["pid"]  # on host 3, and its number there
    assert lab.run(3, ["kill", "-KILL", str(victim)])[0] == 0
    job.go(20)
    job.wait_recovered(1)
    job.wait_step(59)
    lab.crash(1)
    assert lab.run(2, ["kill", "-CONT", standby])[0] == 0
    job.wait_leader(2)
    assert "this copy of the journal ends at generation 1" in job.log_of(2).read_text()
    news = "generation 2 is known from its nodes alone"  # It is told once the journal has it.
    wait_until(lambda: news in job.log_of(2).read_text(), TIMEOUT_SECONDS, news)
    job.go(60)  # Where step 59 was sealed before the crash, this is the next one.
    job.wait_recovered(2)
    job.go(119)
    assert job.wait_all(2, 3, 4) == dict.fromkeys((2, 3, 4), 0), job.log_of(2).read_text()
    assert job.ends() == undisturbed(NODES).ends()
