"""A loss that is not finite: training goes on from a snapshot before the poison, or ends with a report."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from jobs import ARGUMENTS, Job, Jobs, Outcome, holding

POISONED = 15
FLAGS = ("--local-nodes", "2")
FEW_STEPS = ("--steps", "30")
CAPTURED = (4, 8)
"""The ranks wait before these steps, so that there are two snapshots."""

StartJob = Callable[..., Job]


@pytest.fixture
def start(jobs: Jobs) -> StartJob:
    def start_job(*arguments: str, flags: tuple[str, ...] = FLAGS) -> Job:
        return jobs.start(lambda folder: Job(folder, *flags, arguments=("--log", *arguments)))

    return start_job


def test_infinity_in_the_newest_snapshot_is_left_behind(start: StartJob, undisturbed: Callable[[int], Outcome]) -> None:
    job = start(*ARGUMENTS, "--poison-after", str(POISONED))
    assert job.wait() == 0, job.tail()

    assert all((job.out / f"poisoned-{rank}").exists() for rank in range(2))
    (incident,) = job.faults()
    assert "LossNotFinite: the loss of steps 16, 17 was not finite" in incident["reason"]
    assert incident["demoted"] == POISONED
    assert incident["resumed_from"] < POISONED
    assert incident["steps_lost"] >= 1
    assert f"(that of step {POISONED} is demoted: the loss was not finite after it)" in job.log.read_text()
    assert job.ends() == undisturbed(2).ends()
    for rank in range(2):
        mine, theirs = job.steps(rank), undisturbed(2).steps(rank)
        assert {s: e["loss"] for s, e in mine.items()} == {s: e["loss"] for s, e in theirs.items()}


def test_a_loss_that_is_never_finite_again_ends_the_job_with_rank_and_step(start: StartJob) -> None:
    job = start(*FEW_STEPS, "--nan-from", "10", *holding(*CAPTURED))
    job.capture(*CAPTURED, ranks=2)
    assert job.wait() == 1
    first, second = job.faults()
    assert first["demoted"] is not None
    assert CAPTURED[0] <= first["resumed_from"] < first["demoted"] < 10
    assert second["reason"] == first["reason"] or "the loss of steps 10, 11" in second["reason"]
    (error,) = [line for line in job.tail().splitlines() if "error:" in line]
    assert "rank 1 on node-1 raised" in error
    assert "the loss of steps 10, 11 was not finite" in error
    assert "twice in the same way" in error


def test_who_wants_to_go_on_with_such_a_loss_can(start: StartJob) -> None:
    job = start(*FEW_STEPS, "--nan-from", "10", flags=(*FLAGS, "--no-demote-after-nan"))
    assert job.wait() == 0, job.tail()
    assert job.faults() == []
    assert "loss=nan" in job.log.read_text()
    assert len(job.ends()) == 2
