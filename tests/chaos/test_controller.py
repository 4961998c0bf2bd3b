"""The controller is killed again and again, also while a generation is formed: nobody in training notices."""

from __future__ import annotations

import collections
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from jobs import ARGUMENTS, TIMEOUT_SECONDS, Job, Outcome, holding, ranks_of

from ftrain_launcher import query
from ftrain_launcher.errors import ControllerAway
from ftrain_launcher.jobs import JobFolder

NODES = 3
ANSWER_SECONDS_MAX = 2.0
HELD = (20, 40, 60, 80, 100)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path / "job", "--local-nodes", str(NODES), arguments=(*ARGUMENTS, *holding(*HELD)))
    yield job
    job.close()


def kill_controller(job: Job) -> float:
    """SIGKILL; the seconds from the new one's start to its first answer."""
    folder = JobFolder(job.folder / "home" / "jobs" / job.name)
    old = folder.endpoint()
    assert old is not None
    assert old.pid is not None
    os.kill(old.pid, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        try:
            new = query.ask(folder, "/api/status", wait_seconds=0.1)["controller"]["pid"]
        except ControllerAway:
            assert time.monotonic() < deadline, job.tail()
            continue
        if new != old.pid:
            return time.time() - psutil.Process(new).create_time()


def test_a_controller_that_stood_still_gives_nobody_up(tmp_path: Path) -> None:
    """While all nodes are away, and for longer than they have to come back: as on a machine that swaps."""
    flags = ("--local-nodes", str(NODES), "--heartbeat-timeout-seconds", "2", "--agent-grace-seconds", "3")
    job = Job(tmp_path / "job", *flags, arguments=(*ARGUMENTS, *holding(HELD[0])))
    try:
        before = job.wait_for(lambda s: s if _all_run(s, 1) else None, "generation 1")
        controller = psutil.Process(before["controller"]["pid"])
        agents = [psutil.Process(node["agent_pid"]) for node in before["nodes"]]
        for agent in agents:
            agent.suspend()
        job.wait_for(lambda s: all(n["state"] == "away" for n in s["nodes"]), "all away")
        controller.suspend()
        for agent in agents:
            agent.resume()
        time.sleep(4.0)  # the length of the fault
        assert controller.status() == psutil.STATUS_STOPPED
        controller.resume()
        after = job.wait_for(lambda s: s if _all_run(s, 1) else None, "the nodes, heard again")
        assert {n["agent_pid"] for n in after["nodes"]} == {n["agent_pid"] for n in before["nodes"]}
        job.go(HELD[0])
        assert job.wait() == 0, job.tail()
        assert job.faults() == []
        assert "is lost" not in job.log.read_text()
    finally:
        job.close()


def test_killed_at_random_moments_it_is_back_in_two_seconds_and_no_generation_is_formed_twice(
    job: Job, undisturbed: Callable[[int], Outcome], seed: int
) -> None:
    """While all train; and a moment after a worker was killed, when the next generation is being formed."""
    chance = random.Random(seed)
    answers = []
    for generation, step in enumerate(HELD, start=1):
        status = job.wait_for(lambda s, g=generation: s if _all_run(s, g) else None, f"generation {generation}")
        pids = {rank: r["pid"] for rank, r in ranks_of(status).items()}
        answers.append(kill_controller(job))
        after = job.wait_for(lambda s, g=generation: s if _all_run(s, g) else None, "the nodes, heard again")
        assert {rank: r["pid"] for rank, r in ranks_of(after).items()} == pids, "training noticed"
        job.go(step)
        job.kill_rank(chance.randrange(NODES))
        time.sleep(chance.uniform(0.0, 0.6))  # the moment is the fault's own, not a wait for something
        answers.append(kill_controller(job))
        answers.append(kill_controller(job))
    assert job.wait() == 0, job.tail()
    assert job.ends() == undisturbed(NODES).ends()
    formed = collections.Counter(re.findall(r"ftrain: generation (\d+):", job.log.read_text()))
    assert set(formed.values()) == {1}, formed
    assert job.status()["generation"] == len(HELD) + 1
    assert len(answers) == 3 * len(HELD)
    print(f"answers after {max(answers):.2f} s at most, {statistics.median(answers):.2f} s in the median")
    assert statistics.median(answers) < ANSWER_SECONDS_MAX  # the slowest of them may be the machine's


def _all_run(status: dict, generation: int) -> bool:
    """All nodes are heard, and all ranks of a generation have a process."""
    ranks = ranks_of(status)
    heard = [n for n in status["nodes"] if n["state"] == "active"]
    there = len(ranks) == NODES and all(r["pid"] for r in ranks.values())
    return status["state"] == "running" and status["generation"] == generation and len(heard) == NODES and there
