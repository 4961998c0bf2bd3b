"""Faults in full jobs: after each, the job ends as one that never failed, to the last bit, and nothing is left.

The ranks of most jobs wait before some steps (``--hold``), so that no job is over before its faults have come.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import make_certificates
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Job, Jobs, Outcome, exists, holding, pids_of, ranks_of
from small_disk import small_disk

from ftrain.store import CHECK_SECONDS

NODES = 4
ALONE = ("--local-nodes", str(NODES))
FLAGS = (*ALONE, "--spares", "1")

StartJob = Callable[..., Job]
Undisturbed = Callable[[int], Outcome]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    def start_job(*flags: str, program: str = "train.py", arguments: tuple[str, ...] = ARGUMENTS) -> Job:
        return jobs.start(lambda folder: Job(folder, *(flags or FLAGS), program=program, arguments=arguments))

    return start_job


def assert_same(job: Job, undisturbed: Outcome, ranks: int = NODES) -> None:
    """All that the ranks held at the end, and every step's loss and samples."""
    assert job.wait() == 0, job.tail()
    assert job.ends() == undisturbed.ends()
    assert len(job.ends()) == ranks
    for rank in range(ranks):
        mine, theirs = job.steps(rank), undisturbed.steps(rank)
        assert {s: (e["loss"], e["samples"]) for s, e in mine.items()} == {
            s: (e["loss"], e["samples"]) for s, e in theirs.items()
        }


def recovered(job: Job, times: int) -> dict:
    """Wait until the job has been formed anew so many times, and has done a step since."""
    formed = 1 + times
    return job.wait_for(
        lambda s: s if s["generation"] == formed and s["state"] == "running" else None, f"recovery {times}"
    )


def test_a_killed_worker_and_a_node_without_a_spare(start: StartJob, undisturbed: Undisturbed) -> None:
    """The worker costs no sealed step. Position 0, where store and gate are, is no special node: it is replaced."""
    job = start(*ALONE, arguments=(*ARGUMENTS, *holding(40, 80, 119)))
    job.wait_step(10)
    before = job.wait_for(lambda s: s["snapshots"]["sealed"], "a sealed snapshot")
    pid = job.kill_rank(2)
    job.go(40)
    recovered(job, 1)
    job.wait_step(50)
    job.kill_nodes("node-0")
    job.go(80)
    status = recovered(job, 2)
    job.go(119)
    assert {n["position"]: n["name"] for n in status["nodes"] if n["state"] == "active"}[0] == "node-4"

    assert_same(job, undisturbed(NODES))
    killed, lost = job.faults()
    assert (killed["kind"], lost["kind"]) == ("worker_exit", "node_lost")
    assert {"rank": 2, "node": "node-2", "pid": pid} in killed["suspects"]
    assert killed["steps_lost"] == 0
    assert killed["resumed_from"] >= before
    assert killed["state"] == lost["state"] == "closed"
    times = [killed["timeline"][k] for k in ("detected", "decided", "formed", "restored", "first_step")]
    assert times == sorted(times)


def test_a_node_whose_files_were_removed_trains_on_and_is_replaced_at_the_next_fault(
    start: StartJob, undisturbed: Undisturbed
) -> None:
    """As systemd's logind does. It is told of at once, though nothing is lost until something must start."""
    job = start(*ALONE, arguments=(*ARGUMENTS, *holding(40, 119)))
    job.wait_step(10)
    removed = (job.arena / "node-0").rename(job.arena / "removed")  # at once: a daemon may be making a file in it
    shutil.rmtree(removed)  # where the store is, which looks for its node now and then
    looked = time.monotonic() + 2 * CHECK_SECONDS
    job.wait_for(lambda _: [i for i in job.faults() if i["kind"] == "folder_gone"], "word of what was removed")
    status = job.wait_for(lambda s: s if time.monotonic() > looked else None, "the store's look")
    assert (status["generation"], status["state"]) == (1, "running")
    job.kill_rank(2)
    job.go(40)
    status = recovered(job, 1)
    job.go(119)
    assert "node-0" not in {n["name"] for n in status["nodes"] if n["state"] == "active"}

    assert_same(job, undisturbed(NODES))
    removed, lost = job.faults()
    assert [s["node"] for s in removed["suspects"]] == ["node-0"]
    assert "node-0" in {s["node"] for s in lost["suspects"]}


def test_training_goes_on_without_controller_agent_and_daemon_and_a_spare_takes_over(
    start: StartJob, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """First all that is no worker is killed, and no worker notices. Then a node is lost, and the spare replaces it.

    All of it under TLS: what is lost is decoded from what comes encrypted.
    """
    tls = make_certificates(tmp_path / "certificates").arguments()
    job = start(*FLAGS, *tls, arguments=(*ARGUMENTS, *holding(40, 80, 119)))
    status = job.wait_step(10)
    pids = {r["rank"]: r["pid"] for r in ranks_of(status).values()}
    killed = {status["controller"]["pid"], status["nodes"][1]["agent_pid"], status["nodes"][2]["daemon_pid"]}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)

    def all_back(now: dict) -> dict | None:
        there = {now["controller"]["pid"], now["nodes"][1]["agent_pid"], now["nodes"][2]["daemon_pid"]}
        return now if None not in there and not there & killed and now["state"] == "running" else None

    after = job.wait_for(all_back, "controller, agent and daemon")
    assert {r["rank"]: r["pid"] for r in ranks_of(after).values()} == pids
    assert after["generation"] == 1
    job.capture(40, ranks=NODES)
    after = job.wait_for(lambda s: s if (s["snapshots"]["protected"] or 0) >= 40 else None, "protection again")
    assert after["generation"] == 1

    job.kill_nodes("node-1")
    job.go(80)
    status = recovered(job, 1)
    job.go(119)
    assert {n["name"]: n["state"] for n in status["nodes"]}["node-1"] == "lost"
    assert {n["name"]: n["position"] for n in status["nodes"]}["node-4"] == 1

    assert_same(job, undisturbed(NODES))
    restarted, lost = job.faults()
    assert (restarted["kind"], lost["kind"]) == ("daemon_exit", "node_lost")
    assert lost["steps_lost"] <= 1


def test_faults_during_recovery_are_ordinary(start: StartJob, undisturbed: Undisturbed) -> None:
    job = start(arguments=(*ARGUMENTS, *holding(60)))
    job.wait_step(10)
    for generation in (1, 2, 3, 4):
        job.wait_for(lambda s, g=generation: s["generation"] == g and all(_pids(s)), f"generation {generation}")
        job.kill_rank(generation % NODES)
        job.wait_for(lambda s, g=generation: s["generation"] > g, f"the generation after {generation}")
    job.go(60)
    assert_same(job, undisturbed(NODES))


def _pids(status: dict) -> list[int | None]:
    ranks = ranks_of(status)
    return [r["pid"] for r in ranks.values()] if len(ranks) == NODES else [None]


def test_a_loop_of_ones_own_resumes_to_the_last_bit(start: StartJob) -> None:
    """Two ranks a node, commits without `steps`, a loader with workers, gradients that cross a commit."""
    flags, arguments = ("--local-nodes", "2", "--nproc-per-node", "2"), ("--steps", "40")
    undisturbed = start(*flags, program="own_loop.py", arguments=arguments)
    assert undisturbed.wait() == 0, undisturbed.tail()
    job = start(*flags, program="own_loop.py", arguments=(*arguments, *holding(10, 20, 30)))
    for step, rank, held in ((4, 3, 10), (14, 0, 20), (24, 2, 30)):
        job.wait_step(step)
        job.kill_rank(rank)
        job.go(held)
    assert_same(job, undisturbed)
    assert len(job.faults()) == 3


def test_a_campaign_of_random_kills(start: StartJob, undisturbed: Undisturbed, seed: int) -> None:
    """Whatever is killed whenever: workers, agents, daemons, the controller, whole nodes."""
    chance = random.Random(seed)
    held = range(13, 120, 13)
    job = start(arguments=(*ARGUMENTS, *holding(*held)))
    for step in held:
        time.sleep(chance.uniform(0, 0.8))  # the moment is the fault's own, not a wait for something
        what = chance.choice(["worker", "worker", "worker", "agent", "daemon", "controller", "node"])
        status = job.wait_for(
            lambda s: s if s["state"] == "running" and all(_pids(s)) and _there(s) else None, "all well"
        )
        _kill_one(job, status, what, chance)
        job.go(step)
    assert_same(job, undisturbed(NODES))
    assert all(i["steps_lost"] <= (i["kind"] == "node_lost") for i in job.ask("incidents")["incidents"])


def _there(status: dict) -> list[dict]:
    """The nodes of which a new controller has heard again."""
    return [n for n in status["nodes"] if n["state"] == "active" and n["agent_pid"] and n["daemon_pid"]]


def _kill_one(job: Job, status: dict, what: str, chance: random.Random) -> None:
    node = chance.choice(_there(status))
    levels = status["snapshots"]
    with contextlib.suppress(ProcessLookupError):
        match what:
            case "node" if levels["protected"] is not None and levels["protected"] >= levels["sealed"] - 1:
                job.kill_nodes(node["name"])
            case "agent":
                os.kill(node["agent_pid"], signal.SIGKILL)
            case "daemon":
                os.kill(node["daemon_pid"], signal.SIGKILL)
            case "controller" if status["controller"]["pid"]:
                os.kill(status["controller"]["pid"], signal.SIGKILL)
            case _:
                os.kill(node["ranks"][0]["pid"], signal.SIGKILL)


def test_an_exit_code_is_named_and_an_exception_that_repeats_is_reported_once_and_ends_the_job(start: StartJob) -> None:
    job = start("--local-nodes", "2", arguments=("--steps", "20", "--exit-at", "3", "--raise-at", "5"))
    assert job.wait() == 1
    shown = job.tail(200)
    assert shown.count("Traceback") == 1
    assert "rank 1 on node-1 raised ValueError: this training cannot go on" in job.tail(1)
    assert max(job.steps(0)) <= 5
    first, *raised = job.faults()
    assert "rank 1 on node-1 exited with code 3" in first["reason"]
    assert len(raised) == 2


def test_too_little_shared_memory_is_said_before_training_starts(start: StartJob, tmp_path: Path) -> None:
    with small_disk(tmp_path / "arena", "12m") as arena:
        flags = ("--local-nodes", "2", "--arena-dir", str(arena))
        job = start(*flags, arguments=("--steps", "5", "--width", "600"))
        assert job.wait() == 2
        assert re.search(r"need \d+ MiB, \d+ MiB are free", job.tail(1))
        assert not list(job.out.iterdir())


def test_a_signal_ends_everything_in_order(start: StartJob) -> None:
    """SIGINT; for SIGTERM, see test_durable."""
    job = start("--local-nodes", "2", arguments=("--steps", "100000"))
    status = job.wait_step(3)
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 130
    assert not any(map(exists, pids_of(status)))


def test_a_killed_launcher_leaves_nothing_behind(start: StartJob) -> None:
    flags = ("--local-nodes", "2", "--spares", "1", "--controller-grace-seconds", "2")
    job = start(*flags, arguments=("--steps", "100000"))
    status = job.wait_step(3)
    os.kill(status["controller"]["pid"], signal.SIGKILL)
    job.process.kill()
    job.wait()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and (job.arena.exists() or any(map(exists, pids_of(status)))):
        time.sleep(0.05)
    assert not job.arena.exists()
    assert not any(map(exists, pids_of(status)))
