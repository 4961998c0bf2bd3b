"""A job of MIN to MAX nodes begins with those that are there, and takes in those that come at the end of a step."""

from __future__ import annotations

import pytest
from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import CERTIFIED, elastic, lose_one, running, training

from ftrain_launcher.from_agent import Held, RankHalted, StateCertified
from ftrain_launcher.job.events import LAST_CALL_SECONDS, CordonNode, Leave, Progress, Tick
from ftrain_launcher.job.growth import FIRST_SNAPSHOT_SECONDS, GROW_AFTER_SECONDS
from ftrain_launcher.job.halting import DOUBLINGS_MAX, HOLD_SECONDS, RETRY_SECONDS
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.to_agent import Hold, Stop


def test_a_node_that_comes_is_taken_in_at_the_end_of_a_step() -> None:
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.step_all(6)
    newcomer = job.started[-1]
    assert newcomer == "node-4", "one is asked for once the job trains again"
    job.join(newcomer)
    job.tell(Progress(2, 6, 6))
    assert not job.to("node-0", Stop)[1:]
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    for node in job.members():
        job.tell(Held(node, 2, 1, 6))
    for rank in range(6):
        job.tell(RankHalted(job.members()[rank // 2], 2, rank, 7, True, job.now))
    job.tell(Progress(2, 7, 7))
    assert job.coordinator.generation == 3
    assert job.members() == ["node-0", "node-2", "node-3", newcomer]
    held = {snapshot(7, 2): WHOLE}
    for node in job.members():
        job.stopped(node, None if node == newcomer else held)
    form = job.forms()[newcomer]
    assert (form.position, form.origin.position, form.origin.snapshot, form.origin.nodes) == (3, -1, snapshot(7, 2), 3)
    grown = job.coordinator.incidents[-1]
    assert (grown.cause.kind, grown.steps_lost) == ("grown", 0)
    job.tell(StateCertified("node-0", 3, CERTIFIED))
    assert grown.certificate == CERTIFIED


def test_nobody_is_taken_in_while_nothing_of_the_present_size_is_safe() -> None:
    job = just_shrunk()
    job.tell(Progress(2, 6, None))
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    assert not job.coordinator.halting.under_way, "all would stand still for the memory of their first snapshot"
    job.tell(Progress(2, 6, 6))
    assert job.coordinator.halting.under_way


def test_nobody_waits_for_long_for_snapshots_that_are_rare() -> None:
    job = just_shrunk()
    job.tell(Tick(), after=FIRST_SNAPSHOT_SECONDS - 1.0)
    assert not job.coordinator.halting.under_way
    assert job.coordinator.next_deadline() == job.now + 1.0
    job.tell(Tick(), after=1.0)
    assert job.coordinator.halting.under_way


def just_shrunk() -> Job:
    """Three of four train again, and a fourth one has come."""
    job = Job(elastic())
    running(job)
    lose_one(job, "node-1")
    job.step_all(6)
    job.join(job.started[-1])
    return job


def test_newcomers_are_taken_in_together() -> None:
    job = training(3, elastic(2, 5, hosts=True))
    job.come("host-3")
    job.now += GROW_AFTER_SECONDS / 2
    job.come("host-4")
    job.tell(Tick(), after=GROW_AFTER_SECONDS / 2 + 0.1)
    assert not job.coordinator.halting.under_way, "the second one has just come"
    job.tell(Tick(), after=GROW_AFTER_SECONDS / 2)
    assert job.coordinator.halting.under_way


def growing() -> Job:
    """Two hosts train, a third one has come, and they are asked to hold."""
    job = training(2, elastic(2, 3, hosts=True))
    job.come("host-2")
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    return job


def test_a_node_that_never_answers_does_not_hold_the_others_again_and_again() -> None:
    job, waits = growing(), list[float]()
    for step in range(1, 5):
        job.tell(Progress(1, step, step))
        job.tell(Tick(), after=HOLD_SECONDS)
        due = job.coordinator.next_deadline()
        assert due is not None
        waits.append(due - job.now)
        job.tell(Tick(), after=waits[-1])
    assert waits == pytest.approx([RETRY_SECONDS * 2**n for n in range(4)], abs=0.1)


def test_newcomers_that_cannot_be_taken_in_are_tried_less_and_less_often_and_that_is_told_once() -> None:
    """Memory is short, say, so that no rank can capture one step more: each attempt costs all of them a pause."""
    job = growing()
    waits, told = list[float](), len(job.news)
    for attempt in range(1, 12):
        assert [hold.attempt for hold in job.to("node-0", Hold)][-1] == attempt
        for rank in range(2):
            job.tell(Held(f"node-{rank}", 1, attempt, attempt))
        job.tell(RankHalted("node-1", 1, 1, attempt + 1, False, job.now))
        due = job.coordinator.next_deadline()
        assert due is not None
        waits.append(due - job.now)
        job.tell(Tick(), after=waits[-1] - 1.0)
        assert not job.coordinator.halting.under_way
        job.tell(Tick(), after=1.0)
    assert waits == pytest.approx([RETRY_SECONDS * 2 ** min(n, DOUBLINGS_MAX) for n in range(11)], abs=0.1)
    assert len(job.news) == told + 1
    assert "rank 1 could not capture step 2" in job.news[-1]

    job.tell(RankHalted("node-1", 1, 1, 99, False, job.now))
    job.tell(Tick(), after=RETRY_SECONDS)
    assert not job.coordinator.halting.under_way
    job.tell(Progress(1, 99, 0))
    assert job.coordinator.halting.under_way, "somebody has made room: a newer snapshot is sealed"

    job.tell(RankHalted("node-1", 1, 1, 100, False, job.now))
    job.tell(CordonNode("node-1", "its fan is loud", Leave.SOON))
    job.tell(Tick(), after=RETRY_SECONDS)
    assert job.coordinator.halting.under_way, "who wants a node drained does not wait for that"


def test_a_job_begins_with_the_least_after_a_last_call() -> None:
    job = Job(elastic(2, 4, hosts=True))
    job.come("a")
    assert job.coordinator.next_deadline() == pytest.approx(job.now + job.config.host_wait_seconds, abs=1.0)
    job.come("b")
    assert job.coordinator.next_deadline() == pytest.approx(job.now + LAST_CALL_SECONDS)
    job.tell(Tick(), after=LAST_CALL_SECONDS)
    assert job.coordinator.phase is Phase.STOPPING
    job.stop_all()
    assert sorted(form.position for form in job.forms().values()) == [0, 1]
