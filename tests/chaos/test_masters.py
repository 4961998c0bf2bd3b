"""Float32 masters that nobody has but an optimizer: they come back with it, into the same world and into another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import Job, Jobs, Outcome, holding, ranks_of
from torch.distributed.checkpoint import FileSystemReader

RANKS = 4
STEPS = 12
CAPTURED, BROKEN = 4, 5
"""The ranks wait before these steps: so that there is a snapshot of the former, and for the fault."""
HELD = ("--steps", str(STEPS), *holding(CAPTURED, BROKEN))

StartJob = Callable[..., Job]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    def start_job(size: str, *flags: str, arguments: tuple[str, ...] = HELD) -> Job:
        flags = ("--local-nodes", size, *flags)
        return jobs.start(lambda folder: Job(folder, *flags, program="masters.py", arguments=arguments))

    return start_job


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same training, undisturbed."""
    job = Job(
        tmp_path_factory.mktemp("alone") / "job", "--local-nodes", "4",
        program="masters.py", arguments=("--steps", str(STEPS)),
    )  # fmt: skip
    try:
        assert job.wait() == 0, job.tail()
    finally:
        job.close()
    return job


def wait_at_rest(job: Job) -> None:
    """Until all wait for the fault, with the step before protected."""
    job.capture(CAPTURED, ranks=RANKS)
    job.wait_step(BROKEN - 1, RANKS)
    job.node("node-0").wait_protected(BROKEN - 1)


def states(status: dict[str, Any]) -> list[str]:
    """Of all ranks."""
    return [rank["state"] for rank in ranks_of(status).values()]


def assert_resumed_as_captured(job: Job, alone: Outcome, ranks: int) -> None:
    """Before its first step each rank of the next generation held what all held after the last one."""
    resumed = [job.steps(rank)[-BROKEN] for rank in range(ranks)]
    captured = {alone.steps(rank)[BROKEN - 1]["digest"] for rank in range(RANKS)}
    assert len(captured) == 1
    assert {(each["ranks"], each["digest"]) for each in resumed} == {(ranks, *captured)}


@pytest.mark.parametrize("flags", [(), ("--in-process",), ("--spares", "1")], ids=["anew", "in-process", "spare"])
def test_they_come_back_into_the_same_world(start: StartJob, alone: Outcome, flags: tuple[str, ...]) -> None:
    """A worker is killed, or a node, for which there is a spare."""
    job = start("4", *flags)
    wait_at_rest(job)
    if "--spares" in flags:
        job.kill_nodes("node-2")
    else:
        job.kill_rank(2)
    job.go(BROKEN)
    assert job.wait() == 0, job.tail()
    assert [each["resumed_from"] for each in job.faults()] == [BROKEN - 1]
    assert_resumed_as_captured(job, alone, RANKS)
    assert job.ends() == alone.ends()
    for rank in range(RANKS):
        steps = job.steps(rank)
        assert {step: steps[step] for step in range(STEPS)} == alone.steps(rank)


def test_fewer_ranks_take_them_over(start: StartJob, alone: Outcome) -> None:
    """Those of FSDP2 are cut anew, in parts that are not equal."""
    job = start("3:4")
    wait_at_rest(job)
    job.kill_nodes("node-1")
    job.go(BROKEN)
    assert job.wait() == 0, job.tail()
    lost, *_ = job.faults()
    assert (lost["kind"], lost["resumed_from"]) == ("node_lost", BROKEN - 1)
    assert_resumed_as_captured(job, alone, 3)


@pytest.mark.parametrize("size", ["4", "3"])
def test_a_checkpoint_has_them(start: StartJob, alone: Outcome, tmp_path: Path, size: str) -> None:
    storage = ("--durable", str(tmp_path / "storage"), "--durable-every", str(BROKEN), "--snapshot-every", str(BROKEN))
    first = start("4", *storage, arguments=("--steps", str(BROKEN)))
    assert first.wait() == 0, first.tail()
    stored = FileSystemReader(tmp_path / "storage" / f"step-{BROKEN - 1:08}").read_metadata().state_dict_metadata
    for name in ("plain", "fsdp"):  # of FSDP2 the whole, not rank 0's part
        assert stored[f"{name}_optimizer.params.0"].size == stored[f"{name}.0.weight"].size == (7, 8)
    second = start(size, *storage, arguments=("--steps", str(STEPS)))
    assert second.wait() == 0, second.tail()
    assert_resumed_as_captured(second, alone, int(size))
    if size == "4":
        assert second.ends() == alone.ends()


def test_what_is_each_ranks_own_is_not_taken_for_all(start: StartJob) -> None:
    """What to say is told as training begins; the same world has them back, and so the job waits for a node."""
    whole = start("4", arguments=("--steps", str(STEPS), "--drift"))
    assert whole.wait() == 0, whole.tail()
    job = start("3:4", arguments=(*HELD, "--drift"))
    told = "nothing tells what ranks have of plain_optimizer.params.0"
    job.wait_step(CAPTURED - 1, RANKS)
    assert f"no other number of ranks can resume this state: {told}" in job.log.read_text(), job.tail()
    wait_at_rest(job)
    job.kill_rank(2)
    job.wait_for(lambda s: s["generation"] == 2 and states(s) == ["restored"] * RANKS, "four ranks again")
    job.kill_nodes("node-1")
    job.go(BROKEN)
    assert job.wait() == 0, job.tail()
    assert "the job stays at 4 nodes, and waits for another one where one is lost: no other number" in job.tail()
    assert [each["resumed_from"] for each in job.faults()] == [BROKEN - 1] * 2
    assert job.ends() == whole.ends()
    assert "Traceback" not in job.log.read_text()
