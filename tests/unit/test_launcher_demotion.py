"""Where a job goes on after a loss that was not finite."""

from __future__ import annotations

from simulation.checkers import state_of
from unit.coordinator_job import DATA, WHOLE, Job, snapshot

from ftrain_launcher.from_agent import Failure
from ftrain_launcher.job.causes import Sign
from ftrain_launcher.job.demotion import Demotion, demotion_of
from ftrain_launcher.job.policy import EXIT_PROGRAM

HELD = {snapshot(4): WHOLE, snapshot(5, slot=1): WHOLE}


def not_finite(version: int | None, step: int = 7) -> Failure:
    error = f"ftrain.errors.LossNotFinite: the loss of steps {step - 1}, {step} was not finite"
    return Failure(step, error, "", communication=False, not_finite=True, newest_version=version)


def sign(failure: Failure | None, rank: int = 0) -> Sign:
    return Sign(kind="worker_exit", node=f"node-{rank}", time=0.0, rank=rank, failure=failure)


def test_what_is_demoted_is_the_newest_version_that_all_ranks_have() -> None:
    signs = [sign(not_finite(6)), sign(not_finite(5), 1), sign(None, 2), sign(not_finite(None), 3)]
    assert demotion_of(signs, 2) == Demotion(generation=2, version=5)
    assert demotion_of([sign(not_finite(None)), sign(Failure(3, "ValueError", "", communication=False))], 2) is None


def test_the_same_step_captured_again_is_not_demoted() -> None:
    demotion = Demotion(generation=2, version=5)
    assert demotion.concerns(snapshot(5, generation=1))
    assert demotion.concerns(snapshot(6, generation=2))
    assert not demotion.concerns(snapshot(4, generation=2))
    assert not demotion.concerns(snapshot(5, generation=3))


def test_the_job_goes_on_from_the_snapshot_before_the_newest(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.stop_all(HELD)
    assert {m.restore for m in job.forms().values()} == {snapshot(4)}
    incident = job.coordinator.incidents[-1]
    assert (incident.demoted, incident.resumed_from, incident.steps_lost) == (5, 4, 1)
    assert job.news[-1].endswith("after step 4 (that of step 5 is demoted: the loss was not finite after it)")


def test_a_node_that_still_holds_the_demoted_one_does_not_bring_it_back(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.stop_all(HELD)
    job.exit(2, signal=9)  # before any daemon has heard of the new generation, and dropped it
    job.stop_all(HELD)
    assert {m.restore for m in job.forms().values()} == {snapshot(4)}
    assert state_of(job.replayed()) == state_of(job.coordinator)


def test_a_lost_node_beside_it_changes_nothing(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.lose("node-2")
    job.stop_all(HELD)
    assert {m.restore for m in job.forms().values()} == {snapshot(4)}


def test_where_there_is_no_older_one_the_newest_gets_another_chance(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.stop_all({snapshot(5, slot=1): WHOLE})
    assert {m.restore for m in job.forms().values()} == {snapshot(5, slot=1)}
    assert job.news[-1].endswith("(the loss was not finite after it, but there is no older snapshot)")
    assert job.coordinator.incidents[-1].demoted is None


def test_an_older_one_that_a_lost_node_makes_unreadable_is_no_older_one(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.lose("node-2")
    job.stop_all({snapshot(4): DATA, snapshot(5, slot=1): WHOLE})
    assert {m.restore for m in job.forms().values()} == {snapshot(5, slot=1)}


def test_before_the_first_snapshot_the_job_begins_again(job: Job) -> None:
    job.exit(1, failure=not_finite(None, step=1))
    job.stop_all({})
    assert {m.restore for m in job.forms().values()} == {None}


def test_the_next_snapshots_count_again(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.stop_all(HELD)
    job.step_all()
    job.exit(2, signal=9)
    newer = snapshot(5, generation=job.coordinator.formed, slot=2)
    job.stop_all({snapshot(4): WHOLE, newer: WHOLE})
    assert {m.restore for m in job.forms().values()} == {newer}


def test_if_it_comes_again_from_the_older_one_the_job_ends_and_names_rank_and_step(job: Job) -> None:
    job.exit(1, failure=not_finite(5))
    job.stop_all(HELD)
    job.step_all()
    job.exit(1, failure=not_finite(6))
    job.stop_all({snapshot(4): WHOLE, snapshot(6, generation=2): WHOLE})
    for node in job.members():
        job.leave(node)
    job.leave("node-3")
    assert job.end is not None
    assert job.end.exit_code == EXIT_PROGRAM
    assert "rank 1 on node-1 raised ftrain.errors.LossNotFinite: the loss of steps 6, 7" in job.end.message
