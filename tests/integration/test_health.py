"""``ftrain doctor --nodes`` and ``ftrain run --preflight`` on real jobs, and the health process by itself."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import Lab
from hosts.job import TIMEOUTS, HostJob
from jobs import Job, holding
from needs import require_lab

from ftrain.health.words import Failed, Hosting, HostPair, RunPair
from ftrain_launcher.health.process import HealthProcess

pytestmark = pytest.mark.timeout(400)
HOLD = 10
CHECK_SECONDS = 240.0
"""For a round, which imports torch on each node, on a machine on which others do, too."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start_job(*flags: str, hold: tuple[int, ...] = (HOLD,)) -> Job:
        jobs.append(Job(tmp_path / str(len(jobs)), *flags, arguments=("--steps", "20", *holding(*hold))))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()


def doctor(job: Job, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ftrain_launcher.cli", "doctor", "--job", job.name, *arguments],
        capture_output=True,
        text=True,
        env=job.environment,
        timeout=CHECK_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_nodes_of_a_job_are_checked_while_it_trains_and_it_ends_as_ever(start: Callable[..., Job]) -> None:
    job = start("--local-nodes", "2")
    job.wait_step(HOLD - 1)
    code, said = doctor(job, "--nodes", "--json")
    assert code == 0, said
    answer: dict[str, Any] = json.loads(said)
    assert answer["ok"]
    assert answer["training"]
    assert [node["node"] for node in answer["nodes"]] == ["node-0", "node-1"]
    for node in answer["nodes"]:
        assert node["state"] in ("ok", "suspicious"), node
        assert node["figures"]["exact"]
        assert node["figures"]["matmul_gflops"] > 0
        assert abs(node["clock_offset_seconds"]) <= node["clock_error_seconds"] + 0.01
    assert {(k["source"], k["destination"]) for k in answer["links"]} == {("node-0", "node-1"), ("node-1", "node-0")}
    assert all(link["failure"] is None and link["bytes_per_second"] > 0 for link in answer["links"])
    (pair,) = answer["all_reduces"]
    assert pair["seconds"] > 0
    code, said = doctor(job, "--nodes", "1")
    assert code == 0
    assert "node-1: " in said
    assert "measured beside training" in said
    assert doctor(job, "--nodes", "node-9") == (2, "ftrain: error: no node node-9: nodes are node-0, node-1\n")
    job.go(HOLD)
    assert job.wait() == 0, job.tail()
    assert len(job.ends()) == 2


def test_a_health_process_that_is_killed_is_an_answer_and_the_next_task_has_a_new_one() -> None:
    async def work() -> None:
        process = HealthProcess()
        try:
            assert isinstance(await process.do(HostPair("127.0.0.1")), Hosting)
            assert process._process is not None
            process._process.kill()
            assert isinstance(await process.do(RunPair()), Failed)
            assert await process.do(RunPair()) == Failed("there is no pair to run")
        finally:
            await process.close()

    asyncio.run(work())


def test_with_preflight_all_nodes_are_checked_before_the_first_generation(start: Callable[..., Job]) -> None:
    job = start("--local-nodes", "2", "--preflight", hold=())
    assert job.wait(CHECK_SECONDS) == 0, job.tail()
    assert len(job.ends()) == 2
    said = job.log.read_text()
    assert "GFLOP/s" in said
    journal = job.folder / "home" / "jobs" / job.name / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    kinds = [event["event"]["type"] for event in events]
    assert kinds.count("node_checked") == 2
    assert kinds.index("node_checked") < kinds.index("stopped")


def test_a_host_behind_a_slow_link_fails_the_preflight_and_the_job_waits_for_the_spare(tmp_path: Path) -> None:
    """Of four hosts three are to hold ranks, and the slow one is not the last to come: it holds none."""
    require_lab()
    with Lab(4) as lab:
        lab.slow(3, 5e5)
        job = HostJob(
            lab,
            tmp_path,
            *("--nnodes", "3", "--spares", "1", "--preflight", *TIMEOUTS),
            arguments=("--steps", "20", *holding(10)),
        )
        try:
            for host in (1, 3):
                job.start(host)
            job.wait_for(lambda s: sum(n["state"] == "idle" for n in s["nodes"]) == 2, "two hosts", CHECK_SECONDS)
            job.start(2)
            job.wait_for(
                lambda s: any((n["hostname"], n["state"]) == ("h3", "cordoned") for n in s["nodes"]),
                "the slow host turned down",
                CHECK_SECONDS,
            )
            job.start(4)
            status = job.wait_for(lambda s: s["state"] == "running" and s, "the first generation", CHECK_SECONDS)
            ranks = {node["hostname"]: len(node["ranks"]) for node in status["nodes"]}
            assert ranks == {"h1": 1, "h2": 1, "h3": 0, "h4": 1}
            said = "".join(job.log_of(host).read_text() for host in lab.hosts)
            assert "is cordoned (preflight: its links to" in said
            assert "waiting for a host: 1 of 3 are missing" in said
            job.go(10)
            assert set(job.wait_all().values()) == {0}, job.tail()
        finally:
            job.close()
