"""A node was drained without another one in its place: it need not be read for long, however rare snapshots are."""

from __future__ import annotations

import pytest
from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import elastic, running

from ftrain_launcher.engine_messages import FlushJob
from ftrain_launcher.from_agent import Held, RankHalted
from ftrain_launcher.job.events import CordonNode, JobConfig, Leave, NodeChecked, Progress, Tick, UncordonNode
from ftrain_launcher.job.first_snapshot import AWAITED_SECONDS
from ftrain_launcher.job.growth import GROW_AFTER_SECONDS
from ftrain_launcher.job.halting import RETRY_SECONDS
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.to_agent import GoOn, Hold


@pytest.fixture
def job() -> Job:
    return drained(elastic())


def drained(config: JobConfig) -> Job:
    """All but node-1, which was drained, train with what was captured of one node more."""
    job = Job(config)
    running(job)
    job.tell(CordonNode("node-1", "its fan is loud", Leave.SOON))
    job.halt(6)
    job.stop_all({snapshot(6): WHOLE})
    job.step_all(7)
    assert "node-1" not in job.members()
    assert job.coordinator.reads("node-1")
    job.sent.clear()
    return job


def wait(job: Job) -> None:
    """As long as it may take until a snapshot is made that was due."""
    deadline = job.coordinator.next_deadline()
    assert deadline is not None
    assert deadline <= job.now + AWAITED_SECONDS
    job.tell(Tick(), after=AWAITED_SECONDS)


def asked(job: Job, kind: type) -> list[str]:
    """To whom such a message went."""
    return [node for node in job.coordinator.nodes if job.to(node, kind)]


def test_a_step_is_captured_for_it_and_the_ranks_go_on(job: Job) -> None:
    assert not asked(job, Hold), "memory is only being allocated"
    wait(job)
    assert asked(job, Hold) == job.members()
    job.halt(60)
    assert not job.coordinator.reads("node-1")
    assert asked(job, GoOn) == job.members()
    assert (job.coordinator.phase, job.coordinator.generation) == (Phase.RUNNING, 2)
    sent = len(job.sent)
    job.tell(Tick(), after=AWAITED_SECONDS)
    assert len(job.sent) == sent, "once is enough"


def test_with_one_node_left_it_is_safe_once_it_is_sealed() -> None:
    job = drained(elastic(1, 2))
    assert job.coordinator.parity == 0
    wait(job)
    job.tell(Held("node-0", 2, 1, 59))
    for rank in range(2):
        job.tell(RankHalted("node-0", 2, rank, 60, True, job.now))
    assert job.coordinator.reads("node-1")
    assert not asked(job, GoOn), "the gate has not said so"
    job.tell(Progress(2, 60, None))
    assert not job.coordinator.reads("node-1")
    assert asked(job, GoOn) == ["node-0"]


def test_nobody_stops_for_it_where_a_snapshot_is_made_soon(job: Job) -> None:
    job.tell(Progress(2, 8, 8))
    job.tell(Tick(), after=AWAITED_SECONDS)
    assert not asked(job, Hold)


def test_nobody_stops_for_a_node_that_is_lost(job: Job) -> None:
    wait(job)
    job.lose("node-1")
    assert asked(job, GoOn) == job.members()
    assert job.coordinator.phase is Phase.RUNNING


def test_nobody_stops_for_a_node_that_is_let_in_again(job: Job) -> None:
    wait(job)
    job.tell(UncordonNode("node-1"))
    assert not asked(job, GoOn)
    job.tell(NodeChecked("node-1", True, ""))
    assert asked(job, GoOn) == job.members()


def test_a_fault_meanwhile_is_a_fault(job: Job) -> None:
    wait(job)
    job.exit(0, signal=9)
    assert job.coordinator.phase is Phase.STOPPING
    assert not job.coordinator.halting.under_way
    deadline = job.coordinator.next_deadline()
    assert deadline is None or deadline > job.now


def test_another_one_that_is_drained_meanwhile_leaves_after_the_same_step() -> None:
    job = drained(elastic(1, 4))
    wait(job)
    job.tell(CordonNode("node-2", "", Leave.SOON))
    assert len(job.to("node-0", Hold)) == 1
    job.halt(60)
    assert job.coordinator.phase is Phase.STOPPING


def test_where_no_step_can_be_captured_it_is_tried_less_and_less_often(job: Job) -> None:
    wait(job)
    for attempt, seconds in enumerate([RETRY_SECONDS, RETRY_SECONDS * 2, RETRY_SECONDS * 4], start=1):
        for node in job.members():
            job.tell(Held(node, 2, attempt, attempt))
        job.tell(RankHalted("node-0", 2, 0, attempt + 1, False, job.now))
        job.tell(Tick(), after=seconds - 1.0)
        assert not job.coordinator.halting.under_way
        job.tell(Tick(), after=1.0)
        assert job.coordinator.halting.under_way


def test_a_new_controller_goes_on_with_it(job: Job) -> None:
    wait(job)
    again = job.replayed()
    assert again.halting.under_way
    assert again.next_deadline() == job.coordinator.next_deadline()


@pytest.mark.parametrize("seconds", [AWAITED_SECONDS, GROW_AFTER_SECONDS])
def test_a_job_that_is_flushed_does_not_look_again_and_again(job: Job, seconds: float) -> None:
    """Each time that something is due is a line in the journal."""
    job.join(job.started[-1])
    if seconds == GROW_AFTER_SECONDS:
        job.tell(Progress(2, 8, 8))
    job.tell(FlushJob("pre-empted", 600.0))
    job.tell(Tick(), after=seconds)
    deadline = job.coordinator.next_deadline()
    assert deadline is not None
    assert deadline > job.now
