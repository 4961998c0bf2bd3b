"""Faults in full jobs: after each, the job ends as one that never failed, to the last bit, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Job, ranks_of
from needs import require_root

STEPS = 120
NODES = 4
FLAGS = ("--local-nodes", str(NODES), "--spares", "1")
ARGUMENTS = ("--steps", str(STEPS))

StartJob = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartJob]:
    """Starts jobs; at the test's end they are ended, and nothing of them may be left."""
    jobs: list[Job] = []

    def start_job(*flags: str, program: str = "train.py", arguments: tuple[str, ...] = ARGUMENTS) -> Job:
        folder = tmp_path / str(len(jobs))
        jobs.append(Job(folder, *(flags or FLAGS), program=program, arguments=arguments))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The same training without a fault."""
    job = Job(tmp_path_factory.mktemp("undisturbed"), *FLAGS, arguments=ARGUMENTS)
    assert job.wait() == 0, job.tail()
    job.close()
    return job


def assert_same(job: Job, undisturbed: Job, ranks: int = NODES) -> None:
    """All that the ranks held at the end, and every step's loss and samples."""
    assert job.wait() == 0, job.tail()
    assert job.ends() == undisturbed.ends()
    assert len(job.ends()) == ranks
    for rank in range(ranks):
        mine, theirs = job.steps(rank), undisturbed.steps(rank)
        assert {s: (e["loss"], e["samples"]) for s, e in mine.items()} == {
            s: (e["loss"], e["samples"]) for s, e in theirs.items()
        }


def test_a_killed_worker_costs_no_sealed_step(start: StartJob, undisturbed: Job) -> None:
    job = start()
    before = job.wait_step(10)
    pid = job.kill_rank(2)
    job.wait_for(lambda s: s["incidents"] == 1 and s["state"] == "running", "the recovery")

    assert_same(job, undisturbed)
    (incident,) = job.ask("incidents")["incidents"]
    assert incident["kind"] == "worker_exit"
    assert {"rank": 2, "node": "node-2", "pid": pid} in incident["suspects"]
    assert incident["steps_lost"] == 0
    assert incident["resumed_from"] >= before["snapshots"]["sealed"]
    assert incident["state"] == "closed"
    times = [incident["timeline"][k] for k in ("detected", "decided", "formed", "restored", "first_step")]
    assert times == sorted(times)


def test_a_lost_node_is_replaced_by_the_spare(start: StartJob, undisturbed: Job) -> None:
    job = start()
    job.wait_step(10)
    job.kill_node("node-1")
    status = job.wait_for(lambda s: s if s["incidents"] == 1 and s["state"] == "running" else None, "the recovery")
    assert {n["name"]: n["state"] for n in status["nodes"]}["node-1"] == "lost"
    assert {n["name"]: n["position"] for n in status["nodes"]}["node-4"] == 1

    assert_same(job, undisturbed)
    (incident,) = job.ask("incidents")["incidents"]
    assert incident["kind"] == "node_lost"
    assert incident["steps_lost"] <= 1


def test_position_zero_is_no_special_node(start: StartJob, undisturbed: Job) -> None:
    """Its node hosted the store and the gate; and there is no spare: a new node is started."""
    job = start("--local-nodes", str(NODES))
    job.wait_step(10)
    job.kill_node("node-0")
    job.wait_for(lambda s: s["incidents"] == 1 and s["state"] == "running", "the recovery")

    assert_same(job, undisturbed)


def test_training_goes_on_without_controller_agent_and_daemon(start: StartJob, undisturbed: Job) -> None:
    job = start()
    status = job.wait_step(10)
    pids = {r["rank"]: r["pid"] for r in ranks_of(status).values()}
    os.kill(status["controller"]["pid"], signal.SIGKILL)
    os.kill(status["nodes"][1]["agent_pid"], signal.SIGKILL)
    os.kill(status["nodes"][2]["daemon_pid"], signal.SIGKILL)
    killed = {status["controller"]["pid"], status["nodes"][1]["agent_pid"], status["nodes"][2]["daemon_pid"]}

    def all_back(now: dict) -> dict | None:
        there = {now["controller"]["pid"], now["nodes"][1]["agent_pid"], now["nodes"][2]["daemon_pid"]}
        return now if None not in there and not there & killed and now["state"] == "running" else None

    after = job.wait_for(all_back, "controller, agent and daemon")
    assert {r["rank"]: r["pid"] for r in ranks_of(after).values()} == pids
    assert after["generation"] == 1
    sealed = after["snapshots"]["sealed"] or 0
    job.wait_for(lambda s: (s["snapshots"]["protected"] or 0) > sealed, "protection again")

    assert_same(job, undisturbed)
    assert [i["kind"] for i in job.ask("incidents")["incidents"]] == ["daemon_exit"]


def test_two_nodes_lost_at_once_end_the_job_honestly(start: StartJob) -> None:
    job = start("--local-nodes", str(NODES), arguments=("--steps", "100000"))
    job.wait_step(10)
    job.kill_node("node-1")
    job.kill_node("node-3")
    assert job.wait() == 3
    last = job.tail(1)
    assert "position 1" in last
    assert "position 3" in last
    assert all(entry["generation"] == 1 for entry in job.steps(0).values())


def test_faults_during_recovery_are_ordinary(start: StartJob, undisturbed: Job) -> None:
    job = start()
    job.wait_step(10)
    for generation in (1, 2, 3, 4):
        job.wait_for(lambda s, g=generation: s["generation"] == g and all(_pids(s)), f"generation {generation}")
        job.kill_rank(generation % NODES)
        job.wait_for(lambda s, g=generation: s["generation"] > g, f"the generation after {generation}")
    assert_same(job, undisturbed)


def _pids(status: dict) -> list[int | None]:
    ranks = ranks_of(status)
    return [r["pid"] for r in ranks.values()] if len(ranks) == NODES else [None]


def test_a_loop_of_ones_own_resumes_to_the_last_bit(start: StartJob) -> None:
    """Two ranks a node, commits without `steps`, a loader with workers, gradients that cross a commit."""
    flags, arguments = ("--local-nodes", "2", "--nproc-per-node", "2"), ("--steps", "60")
    undisturbed = start(*flags, program="own_loop.py", arguments=arguments)
    assert undisturbed.wait() == 0, undisturbed.tail()
    job = start(*flags, program="own_loop.py", arguments=arguments)
    for step, rank in ((4, 3), (20, 0), (40, 2)):
        job.wait_step(step)
        job.kill_rank(rank)
    assert_same(job, undisturbed)
    assert job.status()["incidents"] == 3


def test_a_campaign_of_random_kills(start: StartJob, undisturbed: Job, seed: int) -> None:
    """Whatever is killed whenever: workers, agents, daemons, the controller, whole nodes."""
    chance = random.Random(seed)
    job = start()
    kills = 0
    for _ in range(8):
        time.sleep(chance.uniform(0, 0.8))  # the moment is the fault's own, not a wait for something
        what = chance.choice(["worker", "worker", "worker", "agent", "daemon", "controller", "node"])
        if job.process.poll() is not None:
            break
        status = job.wait_for(lambda s: s if s["state"] == "running" and all(_pids(s)) else None, "all is well")
        _kill_one(job, status, what, chance)
        kills += 1
    assert_same(job, undisturbed)
    assert kills >= 1
    assert all(i["steps_lost"] <= (i["kind"] == "node_lost") for i in job.ask("incidents")["incidents"])


def _kill_one(job: Job, status: dict, what: str, chance: random.Random) -> None:
    node = chance.choice([n for n in status["nodes"] if n["state"] == "active" and n["agent_pid"] and n["daemon_pid"]])
    levels = status["snapshots"]
    with contextlib.suppress(ProcessLookupError):
        match what:
            case "node" if levels["protected"] is not None and levels["protected"] >= levels["sealed"] - 1:
                job.kill_node(node["name"])
            case "agent":
                os.kill(node["agent_pid"], signal.SIGKILL)
            case "daemon":
                os.kill(node["daemon_pid"], signal.SIGKILL)
            case "controller" if status["controller"]["pid"]:
                os.kill(status["controller"]["pid"], signal.SIGKILL)
            case _:
                os.kill(node["ranks"][0]["pid"], signal.SIGKILL)


def test_an_exception_is_reported_once_and_ends_the_job_when_it_repeats(start: StartJob) -> None:
    job = start("--local-nodes", "2", arguments=("--steps", "20", "--raise-at", "5"))
    assert job.wait() == 1
    shown = job.tail(200)
    assert shown.count("Traceback") == 1
    assert "rank 1 on node-1 raised ValueError: this training cannot go on" in job.tail(1)
    assert max(job.steps(0)) <= 5


def test_an_exit_code_is_named(start: StartJob) -> None:
    job = start("--local-nodes", "2", arguments=("--steps", "20", "--exit-at", "5"))
    assert job.wait() == 1
    assert "rank 1 on node-1 exited with code 3" in job.tail(1)


def test_too_little_shared_memory_is_said_before_training_starts(start: StartJob, tmp_path: Path) -> None:
    require_root()
    arena = tmp_path / "arena"
    arena.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(arena)], check=True, timeout=10)
    try:
        flags = ("--local-nodes", "2", "--arena-dir", str(arena))
        job = start(*flags, arguments=("--steps", "5", "--width", "600"))
        assert job.wait() == 2
        assert re.search(r"need \d+ MiB, \d+ MiB are free", job.tail(1))
        assert not list(job.out.iterdir())
    finally:
        subprocess.run(["umount", str(arena)], check=True, timeout=10)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_everything_in_order(start: StartJob, number: int, code: int) -> None:
    job = start("--local-nodes", "2", arguments=("--steps", "100000"))
    status = job.wait_step(3)
    job.process.send_signal(number)
    assert job.wait() == code
    assert not any(_exists(pid) for pid in _all_pids(status))


def test_a_killed_launcher_leaves_nothing_behind(start: StartJob) -> None:
    flags = ("--local-nodes", "2", "--spares", "1", "--controller-grace-seconds", "2")
    job = start(*flags, arguments=("--steps", "100000"))
    status = job.wait_step(3)
    os.kill(status["controller"]["pid"], signal.SIGKILL)
    job.process.kill()
    job.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (job.arena.exists() or any(map(_exists, _all_pids(status)))):
        time.sleep(0.05)
    assert not job.arena.exists()
    assert not any(map(_exists, _all_pids(status)))


def _all_pids(status: dict) -> list[int]:
    pids = [status["controller"]["pid"]]
    for node in status["nodes"]:
        pids += [node["agent_pid"], node["daemon_pid"], *(r["pid"] for r in node["ranks"])]
    return [pid for pid in pids if pid is not None]


def _exists(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
