"""Jobs over real hosts (of namespaces): what a network and a power failure do to them.

Short troubles pass unnoticed; a host that is lost is replaced and fences itself; whatever happened, the job ends as one
that never failed, to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import Lab
from hosts.job import CONTROLLER_GRACE_SECONDS, SHORT_SECONDS, TIMEOUTS, HostJob
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Jobs, Outcome, holding
from needs import require_lab

NODES = 4
FLAGS = ("--nnodes", str(NODES), *TIMEOUTS)

StartJob = Callable[..., HostJob]
Undisturbed = Callable[[int], Outcome]


@pytest.fixture
def lab() -> Iterator[Lab]:
    require_lab()
    with Lab(6) as lab:
        yield lab


@pytest.fixture
def start(lab: Lab, jobs: Jobs) -> StartJob:
    """Starts a job on hosts."""

    def start_job(*hosts: int, hold: tuple[int, ...], flags: tuple[str, ...] = (), own_state: bool = False) -> HostJob:
        arguments = (*ARGUMENTS, *holding(*hold))
        flags = (*FLAGS, *flags)
        job = jobs.start(lambda folder: HostJob(lab, folder, *flags, arguments=arguments, own_state=own_state))
        job.start_all(*hosts, nodes=NODES)
        return job

    return start_job


def assert_same(job: HostJob, undisturbed: Outcome, hosts: tuple[int, ...]) -> None:
    """The hosts' launchers end well, and all ranks hold what they would without a fault."""
    assert job.wait_all(*hosts) == dict.fromkeys(hosts, 0), job.tail()
    assert job.ends() == undisturbed.ends()
    assert len(job.ends()) == NODES


def wait_fenced(lab: Lab, host: int) -> float:
    """Wait until only the launcher and its nursery run on a host; the seconds that took."""
    began = time.monotonic()
    while len(lab.processes(host)) > 2:
        assert time.monotonic() - began < TIMEOUT_SECONDS, lab.processes(host)
        time.sleep(0.05)
    return time.monotonic() - began


def test_short_troubles_pass_unnoticed_and_hosts_that_crashed_or_were_cut_off_are_replaced(
    lab: Lab, start: StartJob, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """State folders of their own, a common secret, a label."""
    secret = tmp_path / "secret"
    secret.write_text("what only these hosts know")
    secret.chmod(0o600)
    flags = ("--spares", "1", "--secret-file", str(secret))
    job = start(1, 2, 3, 4, hold=(10, 20, 30, 40, 44, 60, 80, 119), flags=flags, own_state=True)
    short_troubles_pass_unnoticed(lab, job)
    a_fresh_host_takes_the_place_of_one_that_crashed(lab, job)
    one_that_is_cut_off_is_replaced_by_the_spare_and_fences_itself(lab, job)
    healed_it_serves_as_a_spare_and_takes_over_from_one_that_is_heard_no_more(lab, job)
    job.go(119)

    assert_same(job, undisturbed(NODES), (1, 3, 5, 6))
    losses = job.faults()
    assert [i["kind"] for i in losses] == ["node_lost"] * 3
    assert all(i["steps_lost"] <= 1 for i in losses)


def short_troubles_pass_unnoticed(lab: Lab, job: HostJob) -> None:
    """A cut for less than the heartbeat timeout, one-way cuts, loss and delay: no new generation, no incident."""
    for step, direction in ((10, "both"), (20, "in"), (30, "out")):
        job.wait_step(step - 1)
        lab.cut(3, direction=direction)
        job.go(step)
        time.sleep(SHORT_SECONDS)  # the fault's own length
        lab.heal()
    job.wait_step(39)
    for host in lab.hosts:
        lab.loss(host, 0.01)
        lab.delay(host, 0.02)
    job.go(40)
    job.wait_step(43)
    lab.heal()
    assert job.status()["generation"] == 1
    assert job.faults() == []
    assert job.ask("status", host=3)["state"] == "running"


def a_fresh_host_takes_the_place_of_one_that_crashed(lab: Lab, job: HostJob) -> None:
    """There is no spare yet, so the job waits for a host."""
    lab.crash(4)
    job.go(44)
    job.wait_for(lambda s: s["state"] == "stopping", "a vacant position")
    job.start(6, "--failure-domain", "rack-6")
    job.wait_recovered(1)
    assert (job.node_on(6)["position"], job.node_on(6)["failure_domain"]) == (3, "rack-6")


def one_that_is_cut_off_is_replaced_by_the_spare_and_fences_itself(lab: Lab, job: HostJob) -> None:
    job.start(5)
    wait_spare(job, 5)
    lab.cut(3)
    job.wait_for(lambda s: s["generation"] == 3, "the loss of host 3")
    job.go(60)
    job.wait_recovered(2)
    assert job.node_on(3)["state"] == "lost"
    assert job.node_on(5)["position"] == 2
    assert wait_fenced(lab, 3) < 2 * CONTROLLER_GRACE_SECONDS


def healed_it_serves_as_a_spare_and_takes_over_from_one_that_is_heard_no_more(lab: Lab, job: HostJob) -> None:
    lab.heal()
    wait_spare(job, 3)
    lab.cut(2, direction="out")
    job.wait_for(lambda s: s["generation"] == 4, "the loss of host 2")
    job.go(80)
    job.wait_recovered(3)
    assert job.node_on(3)["position"] == 1
    wait_fenced(lab, 2)


def wait_spare(job: HostJob, host: int) -> None:
    """Wait until the newest node is a host's, and idle."""
    job.wait_for(
        lambda s: s["nodes"][-1]["hostname"] == f"h{host}" and s["nodes"][-1]["state"] == "idle", "a new spare"
    )
