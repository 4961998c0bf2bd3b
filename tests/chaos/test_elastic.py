"""Jobs of MIN to MAX nodes lose some, go on with the rest, and take in others when they are there.

To the last bit, by ``--deterministic-reduction``. Without that it is near enough: scripts/bench/reshard.py.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import Lab
from hosts.job import TIMEOUTS, HostJob
from jobs import Job, Jobs, Outcome, holding, ranks_of
from small_disk import small_disk

STEPS, BEFORE = 160, 10
"""The ranks wait before that step until the node is lost."""
CAPTURED = (4, 8, 9)
"""And before these, so that there are snapshots of them."""
ARGUMENTS = ("--steps", str(STEPS))
EXACT = "--deterministic-reduction"
PACED = (*ARGUMENTS, "--pace", "0.2")
HELD = (*PACED, *holding(*CAPTURED, BEFORE))
BATCH = 24


def lines(job: Outcome) -> dict[int, list[dict[str, Any]]]:
    """By step: what the ranks of the newest generation that made it wrote down."""
    made = [job.steps(int(path.stem[5:])) for path in sorted(job.out.glob("rank-*.jsonl"))]
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for step in range(STEPS):
        by_rank = [steps[step] for steps in made if step in steps]
        newest = max(line["generation"] for line in by_rank)
        found[step] = [line for line in by_rank if line["generation"] == newest]
    return found


def losses(steps: dict[int, list[dict[str, Any]]]) -> list[float]:
    return [float.fromhex(steps[step][0]["loss"]) for step in range(STEPS)]


def assert_each_sample_is_seen_once(steps: dict[int, list[dict[str, Any]]]) -> None:
    for step, ranks in steps.items():
        seen = Counter(index for line in ranks for index in line["seen"])
        assert len(seen) == BATCH, f"step {step}: {seen}"
        assert set(seen.values()) == {1}, f"step {step}: {seen}"
        assert len({line["loss"] for line in ranks}) == 1


def wait_at_rest(job: Job) -> None:
    """Until all four wait for what comes, with the step before protected and older ones in memory."""
    job.capture(*CAPTURED, ranks=4)
    job.wait_step(BEFORE - 1, 4)
    job.node("node-0").wait_protected(BEFORE - 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same training on four nodes that all stay."""
    folder = tmp_path_factory.mktemp("alone")
    job = Job(folder / "job", "--local-nodes", "4", EXACT, program="elastic.py", arguments=ARGUMENTS)
    try:
        assert job.wait() == 0, job.tail()
    finally:
        job.close()
    return job


StartJob = Callable[..., Job]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    def start_job(size: str, *flags: str, arguments: tuple[str, ...] = HELD) -> Job:
        flags = ("--local-nodes", size, EXACT, *flags)
        return jobs.start(lambda folder: Job(folder, *flags, program="elastic.py", arguments=arguments))

    return start_job


def wait_size(job: Job, nodes: int) -> set[int]:
    """The pids of its ranks."""

    def pids(status: dict[str, Any]) -> set[int] | None:
        found = {rank["pid"] for rank in ranks_of(status).values() if rank["pid"]}
        return found if status["size"]["nodes"] == nodes == len(found) else None

    return job.wait_for(pids, f"{nodes} nodes")


def assert_same(job: Job, alone: Outcome) -> dict[int, list[dict[str, Any]]]:
    """What it trained on, its losses, and what its ranks hold at the end."""
    steps = lines(job)
    assert_each_sample_is_seen_once(steps)
    assert losses(steps) == losses(lines(alone))
    assert set(job.ends()) == set(alone.ends())
    return steps


@pytest.mark.parametrize("flags", [(), ("--in-process",)], ids=["new_processes", "same_processes"])
def test_a_lost_node_is_done_without_and_another_one_is_taken_in(
    start: StartJob, alone: Outcome, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    job = start("3:4", *flags)
    wait_at_rest(job)
    before = wait_size(job, 4)
    job.kill_nodes("node-1")
    assert len(wait_size(job, 3) & before) == (3 if flags else 0)
    job.go(BEFORE)
    wait_size(job, 4)
    (job.out / "quick").touch()
    assert job.wait() == 0, job.tail()
    lost, grown = job.faults()
    assert (lost["kind"], grown["kind"]) == ("node_lost", "grown")
    assert (lost["steps_lost"], grown["steps_lost"]) == (0, 0)
    assert lost["resumed_from"] == BEFORE - 1 < grown["resumed_from"] < STEPS - 1
    sizes = Counter(len(ranks) for ranks in assert_same(job, alone).values())
    assert sizes[3] == grown["resumed_from"] - lost["resumed_from"]
    with capsys.disabled():
        print(f"\n4 -> 3 in {lost['seconds']:.2f} s, 3 -> 4 in {grown['seconds']:.2f} s; {sizes[3]} steps on three")


def test_where_memory_is_short_for_fewer_nodes_they_go_on_unprotected_until_there_is_some(
    start: StartJob, alone: Outcome, tmp_path: Path
) -> None:
    """The arena's file system is full when the larger shares of three nodes are to be captured."""
    with small_disk(tmp_path / "arena", "64m") as arena:
        job = start("3:4", "--arena-dir", str(arena))
        wait_at_rest(job)
        others = arena / "of somebody else"

        def fill() -> None:
            with others.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(arena).free - (4 << 20))

        job.kill_nodes("node-1", at_once=fill)
        wait_size(job, 3)
        job.go(BEFORE)
        job.wait_for(lambda _: "warning: too little shared memory" in job.tail(), "word of it")
        before = job.ask("status")["snapshots"]
        assert before["protected"] is None or before["protected"] < BEFORE
        others.unlink()
        wait_size(job, 4)  # which takes a snapshot of the three
        (job.out / "quick").touch()
        assert job.wait() == 0, job.tail()
    lost, grown = job.faults()
    assert (lost["kind"], grown["kind"]) == ("node_lost", "grown")
    assert_same(job, alone)


def test_what_memory_has_lost_comes_from_storage_into_a_job_of_another_size(
    start: StartJob, alone: Outcome, tmp_path: Path
) -> None:
    """Two of four at once are more than parity covers; later a new job of three starts from where that one ended."""
    storage = ("--durable", str(tmp_path / "storage"), "--durable-every", "5")
    job = start("2:4", *storage)
    wait_at_rest(job)
    job.wait_for(lambda s: (s["snapshots"]["durable"] or 0) >= 4, "a checkpoint on storage")
    job.kill_nodes("node-1", "node-2")
    job.go(BEFORE)
    wait_size(job, 2)
    (job.out / "quick").touch()
    assert job.wait() == 0, job.tail()
    lost = job.faults()[0]
    assert (lost["kind"], lost["resumed_from"] in (4, 9)) == ("node_lost", True)
    assert "2 nodes, 2 ranks, after step" in job.tail()
    assert ", re-sharded, from " in job.tail()
    assert 2 in {len(ranks) for ranks in assert_same(job, alone).values()}
    other = start("3", *storage, arguments=ARGUMENTS)
    assert other.wait() == 0, other.tail()
    assert f"3 nodes, 3 ranks, after step {STEPS - 1}, re-sharded, from " in other.tail()
    assert set(other.ends()) == set(alone.ends())


def test_a_state_that_cannot_be_certified_is_not_trained_with(start: StartJob, alone: Outcome) -> None:
    """A bit of one rank's copy flips; the next loss of a node shows it, and the job goes on from before that."""
    job = start("3:4", "--snapshot-every", "1", arguments=(*HELD, "--flip-after", str(BEFORE - 1)))
    wait_at_rest(job)
    job.kill_nodes("node-1")
    job.go(BEFORE)
    wait_size(job, 3)
    (job.out / "quick").touch()
    assert job.wait() == 0, job.tail()
    lost, refused, *_ = job.faults()
    assert (lost["kind"], lost["resumed_from"]) == ("node_lost", BEFORE - 1)
    assert (refused["kind"], refused["doubtful"], refused["resumed_from"]) == ("not_certified", BEFORE - 1, BEFORE - 2)
    assert "table.weight: replicas are not equal" in refused["reason"]
    assert f"(that of step {BEFORE - 1} could not be certified)" in job.tail()
    assert_same(job, alone)


def test_a_host_is_drained_within_seconds_however_rare_snapshots_are(
    make_lab: Callable[..., Lab], alone: Outcome, tmp_path: Path
) -> None:
    """Without another one in its place; no snapshot is due before the job's end, which waits for the drain."""
    lab, last = make_lab(3), STEPS - 1
    flags = ("--nnodes", "2:3", EXACT, *TIMEOUTS, "--snapshot-every", str(2 * STEPS))
    arguments = (*PACED, *holding(BEFORE, last))
    job = HostJob(lab, tmp_path / "job", *flags, program="elastic.py", arguments=arguments)
    try:
        job.start_all(1, 2, 3, nodes=3)
        job.wait_step(BEFORE - 1, 3)
        job.go(BEFORE)
        drained = job.node_on(2)["name"]
        words = ["drain", drained, "--job", job.name, "--timeout-seconds", "60"]
        environment = {**os.environ, "FTRAIN_HOME": str(job.home(1))}
        code, said = lab.run(1, [sys.executable, "-m", "ftrain_launcher.cli", *words], env=environment)
        assert (code, said.splitlines()[-1]) == (0, f"{drained}: holds no ranks; it may be switched off"), said
        assert job.wait_step(BEFORE, 2)["generation"] == 2
        lab.crash(2)
        (job.out / "quick").touch()
        job.go(last)
        assert job.wait_all(1, 3) == {1: 0, 3: 0}, job.tail()
        [incident] = job.faults()
        assert (incident["kind"], incident["steps_lost"]) == ("drained", 0)
        assert {len(ranks) for ranks in assert_same(job, alone).values()} == {2, 3}
    finally:
        job.close()


def test_a_host_that_crashed_is_done_without_until_it_comes_back(
    make_lab: Callable[..., Lab], alone: Outcome, tmp_path: Path
) -> None:
    lab, later = make_lab(3), 60
    arguments = (*PACED, *holding(BEFORE, later))
    job = HostJob(lab, tmp_path / "job", "--nnodes", "2:3", EXACT, *TIMEOUTS, program="elastic.py", arguments=arguments)
    try:
        job.start_all(1, 2, 3, nodes=3)
        job.wait_step(BEFORE - 1, 3)
        lab.crash(3)
        lab.run(3, ["sh", "-c", "rm -r /dev/shm/ftrain-*"])  # its memory
        job.go(BEFORE)
        wait_size(job, 2)
        lab.heal()
        job.start(3)
        job.wait_for(lambda s: any(n["state"] == "idle" and n["hostname"] == "h3" for n in s["nodes"]), "host 3 again")
        job.go(later)
        wait_size(job, 3)
        (job.out / "quick").touch()
        assert job.wait_all(1, 2, 3) == {1: 0, 2: 0, 3: 0}, job.tail()
        lost, grown = job.faults()
        assert (lost["kind"], grown["kind"], grown["steps_lost"]) == ("node_lost", "grown", 0)
        assert {len(ranks) for ranks in assert_same(job, alone).values()} == {2, 3}
    finally:
        job.close()
