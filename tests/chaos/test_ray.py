"""Jobs on a real Ray cluster of several hosts: what happens to its machines, its head, and the driver.

One cluster for all: each test says which hosts it wants in it. Whatever happened, a job ends as one that never failed,
and nothing of it is left.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import ARGUMENTS, Job, Outcome, holding
from needs import require_lab, require_ray
from ray_cluster import HEAD, START_SECONDS, RayCluster, RayJob

STEPS = 160
EXACT = "--deterministic-reduction"
AT_ONCE = ("--rdzv-conf", "last_call_timeout=0")
"""A job of MIN:MAX begins as soon as MIN nodes are there; else it waits half a minute for more."""

START = """
import sys, ray, ftrain.ray
address, name, *script = sys.argv[1:]
ray.init(address=address, logging_level="error", log_to_driver=False)
ftrain.ray.run(*script, nodes=2, name=name, options=("--parity", "1"))
"""
WAIT = """
import sys, ray, ftrain.ray
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
job = ftrain.ray.RayJob.attach(sys.argv[2])
print("generation", job.status()["generation"])
open(sys.argv[3], "x").close()
sys.exit(job.wait(timeout_seconds=170))
"""

StartJob = Callable[..., RayJob]
Undisturbed = Callable[[int], Outcome]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    require_ray()
    require_lab()
    with RayCluster(4, tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


@pytest.fixture
def start(cluster: RayCluster, tmp_path: Path) -> Iterator[StartJob]:
    """Starts a job; at the end nothing of it may be left on any host."""
    jobs: list[RayJob] = []

    def start_job(*flags: str, hold: tuple[int, ...] = (), **options: Any) -> RayJob:
        options = {"arguments": (*ARGUMENTS, *holding(*hold)), **options}
        jobs.append(RayJob(cluster, tmp_path / str(len(jobs)), *flags, **options))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()
    cluster.wait_clean()


def assert_same(job: RayJob, undisturbed: Outcome) -> None:
    assert job.wait() == 0, job.tail()
    assert job.ends() == undisturbed.ends()


def test_a_job_goes_on_without_its_driver_which_can_attach_again(
    cluster: RayCluster, start: StartJob, undisturbed: Undisturbed
) -> None:
    cluster.have(2, 3)
    job = start("--nnodes", "2", hold=(20, 60))
    job.wait_step(19)
    job.process.kill()
    job.process.wait()
    job.go(20)
    # The status of a job whose command is gone, as the user asks for it.
    deadline = time.monotonic() + 60
    while (status := job.ask("status"))["nodes"][0]["ranks"][0]["step"] != 59:
        assert time.monotonic() < deadline, status
    assert status["state"] == "running"
    job.drive()
    job.go(60)
    assert_same(job, undisturbed(2))
    assert "attached to it" in job.tail()
    assert job.faults() == []


def test_a_node_that_joins_the_cluster_is_taken_in(cluster: RayCluster, start: StartJob, tmp_path: Path) -> None:
    """The losses are those of a job that always had one node."""
    cluster.have(2, 3)
    arguments = ("--steps", str(STEPS))
    arguments_here = (*arguments, "--pace", "0.2", *holding(5))
    job = start("--nnodes", "2:3", EXACT, *AT_ONCE, program="elastic.py", arguments=arguments_here)
    job.wait_step(4)
    cluster.add(4)
    job.wait_for(lambda s: len(s["nodes"]) == 3, "a third node")
    job.go(5)
    job.wait_for(lambda s: s["size"]["nodes"] == 3 and s["generation"] == 2, "a job of three nodes")
    (job.out / "quick").touch()
    assert job.wait() == 0, job.tail()
    assert len(job.ends()) == 3
    (grown,) = job.faults()
    assert (grown["kind"], grown["steps_lost"]) == ("grown", 0)

    alone = Job(tmp_path / "alone", "--local-nodes", "1", EXACT, program="elastic.py", arguments=arguments)
    assert alone.wait() == 0, alone.tail()
    assert losses(job) == losses(alone)


def losses(job: Outcome) -> list[str]:
    return [line["loss"] for _, line in sorted(job.steps(0).items())]


def test_a_node_that_crashed_is_replaced_where_ray_finds_room(
    cluster: RayCluster, start: StartJob, undisturbed: Undisturbed
) -> None:
    cluster.have(2, 3, 4)
    job = start("--nnodes", "2", hold=(20, 119))
    job.wait_step(19)
    lost = job.host_of(1)
    cluster.crash(lost)
    job.go(20)
    job.wait_recovered(1)
    assert job.host_of(1) not in (lost, job.host_of(0))
    job.go(119)
    assert_same(job, undisturbed(2))
    (incident,) = job.faults()
    assert incident["kind"] == "node_lost"
    assert incident["steps_lost"] <= 1


def test_a_spare_takes_over_at_once_and_a_machine_that_joins_is_the_next_spare(
    cluster: RayCluster, start: StartJob, undisturbed: Undisturbed
) -> None:
    """A worker is killed before, which is no machine's loss."""
    cluster.have(2, 3, 4)
    job = start("--nnodes", "2", "--spares", "1", hold=(20, 40, 119))
    job.wait_step(19)
    job.wait_for(lambda s: len(living(s)) == 3, "a spare")
    job.kill_rank(0)
    job.go(20)
    job.wait_recovered(1)
    job.wait_step(39)
    lost, stays = job.host_of(1), job.host_of(0)
    cluster.crash(lost)
    job.go(40)
    job.wait_recovered(2)
    assert job.host_of(1) not in (lost, stays)
    cluster.add(lost)
    job.wait_for(lambda s: len(living(s)) == 3, "another spare")
    job.go(119)
    assert_same(job, undisturbed(2))
    killed, crashed = job.faults()
    assert (killed["kind"], crashed["kind"]) == ("worker_exit", "node_lost")
    assert crashed["rung"] == "another node"
    assert killed["steps_lost"] <= 1
    assert crashed["steps_lost"] <= 1


def living(status: dict[str, Any]) -> list[str]:
    return [node["name"] for node in status["nodes"] if node["state"] != "lost"]


def test_a_job_that_a_program_started_is_waited_for_by_another(
    cluster: RayCluster, start: StartJob, undisturbed: Undisturbed
) -> None:
    """`ftrain.ray`: the first one is killed; what it had started shows the output until the end."""
    cluster.have(2, 3)
    job = start("--nnodes", "2", hold=(20,), words=["-c", START])
    job.wait_step(19)
    job.process.kill()
    job.process.wait()
    wait = [sys.executable, "-c", WAIT, cluster.address, job.name, str(job.out / "go-20")]
    code, said = cluster.lab.run(HEAD, wait, timeout=180, env=cluster.environment)
    assert code == 0, said
    assert "generation 1" in said
    assert job.ends() == undisturbed(2).ends()


def test_a_script_that_is_not_on_the_machines_ends_the_job_at_once(
    cluster: RayCluster, start: StartJob, tmp_path: Path
) -> None:
    cluster.have(2, 3)
    script = cluster.private / "train.py"
    cluster.lab.run(HEAD, ["touch", str(script)])
    job = start("--nnodes", "2", program=str(script))
    assert job.wait() == 2, job.tail()
    assert f"error: no such script: {script}" in job.tail()


def test_ctrl_c_ends_the_job_everywhere(cluster: RayCluster, start: StartJob) -> None:
    cluster.have(2, 3)
    job = start("--nnodes", "2", hold=(5,))
    job.wait_step(4)
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 128 + signal.SIGINT, job.tail()


def test_training_goes_on_without_the_head_for_as_long_as_ray_lives(
    cluster: RayCluster, start: StartJob, undisturbed: Undisturbed
) -> None:
    """The last one, as it ends the cluster. A job that is done by then ends well; nothing outlives Ray's own end.

    What is left of the training is short, and nothing else runs beside it: it must be over before Ray ends all.
    """
    expected = undisturbed(1)
    cluster.have(2, 3)
    done, other = start("--nnodes", "1", hold=(115,)), start("--nnodes", "1", hold=(115, 118))
    done.wait_step(114)
    other.wait_step(114)
    cluster.kill_store()
    done.go(115)
    other.go(115)
    other.wait_step(117)
    assert_same(done, expected)
    assert other.wait_ended(START_SECONDS) != 0
    cluster.wait_clean(START_SECONDS)
