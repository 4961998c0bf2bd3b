"""The planned stop as the coordinator sees it: who is asked, which step is agreed on, and what gives it up."""

from __future__ import annotations

import pytest
from unit.coordinator_job import DATA, WHOLE, Job, config, snapshot

from ftrain_launcher.from_agent import Held, RankHalted
from ftrain_launcher.job.events import CordonNode, Leave, Progress, Tick, UncordonNode
from ftrain_launcher.job.halting import HALT_SECONDS, HOLD_SECONDS, PROTECT_SECONDS, RETRY_SECONDS
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.to_agent import GoOn, HaltAfter, Hold

MEMBERS = ["node-0", "node-1", "node-2"]


@pytest.fixture
def job() -> Job:
    """Three nodes and a spare, in training; node-1 is to be drained."""
    job = Job(config())
    job.run()
    job.tell(CordonNode("node-1", "its fan is loud", Leave.SOON))
    return job


def asked(job: Job, kind: type) -> list[str]:
    """To whom such a message went."""
    return [node for node in job.coordinator.nodes if job.to(node, kind)]


def held(job: Job, *steps: int, attempt: int = 1) -> None:
    for node, step in zip(MEMBERS, steps, strict=False):
        job.tell(Held(node, 1, attempt, step))


def halted(job: Job, step: int, ranks: tuple[int, ...] = (0, 1, 2), *, sealed: bool = True) -> None:
    for rank in ranks:
        job.tell(RankHalted(f"node-{rank}", 1, rank, step, sealed, job.now))


def protected(job: Job, step: int) -> None:
    job.tell(Progress(1, step, step))


def again(job: Job, step: int) -> None:
    """All stop, and then who is given a position; they train again."""
    while job.coordinator.phase is Phase.STOPPING:
        job.stop_all({snapshot(step): WHOLE})
    job.step_all(step + 1)


def test_all_stop_after_the_step_that_follows_the_farthest_and_nothing_is_lost(job: Job) -> None:
    assert asked(job, Hold) == MEMBERS
    held(job, 4, 9, 4)
    assert [message.step for message in job.to("node-0", HaltAfter)] == [10]
    assert asked(job, HaltAfter) == MEMBERS
    protected(job, 9)
    halted(job, 10)
    assert job.coordinator.phase is Phase.RUNNING
    stopped = job.now
    protected(job, 10)
    assert job.coordinator.phase is Phase.STOPPING
    again(job, 10)
    assert job.members() == ["node-0", "node-3", "node-2"]
    incident = job.coordinator.incidents[-1]
    assert incident.cause is not None
    assert (incident.cause.kind, incident.steps_lost, incident.resumed_from) == ("drained", 0, 10)
    assert incident.timeline.detected == pytest.approx(stopped - 0.01)
    assert job.coordinator._history._faults_without_progress == 0


def test_without_parity_sealed_is_enough() -> None:
    job = Job(config(parity=0, spares=0))
    job.run()
    halting, formed = job.coordinator.halting, job.coordinator._formed
    assert not halting.ready(formed, job.now)
    held_at = job.now
    for node in MEMBERS:
        halting.take(Held(node, 1, 1, 4), held_at)
    for rank in range(3):
        halting.take(RankHalted(f"node-{rank}", 1, rank, 5, True, held_at), held_at)
    assert halting.ready(formed, held_at)


def test_a_node_that_does_not_answer_holds_the_others_for_a_moment_only(job: Job) -> None:
    held(job, 4, 4)
    job.tell(Tick(), HOLD_SECONDS)
    assert asked(job, GoOn) == MEMBERS
    assert "no answer from node-2" in job.news[-1]
    held(job, 4, 4, 4)  # too late
    assert not asked(job, HaltAfter)
    job.tell(Tick(), RETRY_SECONDS)
    assert [message.attempt for message in job.to("node-0", Hold)] == [1, 2]
    held(job, 7, 7, 7, attempt=1)
    assert not asked(job, HaltAfter)
    held(job, 8, 8, 8, attempt=2)
    assert [message.step for message in job.to("node-0", HaltAfter)] == [9]


def test_a_rank_that_does_not_come_is_waited_for_only_so_long(job: Job) -> None:
    held(job, 4, 4, 4)
    halted(job, 5, (0, 2))
    job.tell(Tick(), HALT_SECONDS + PROTECT_SECONDS)
    assert asked(job, GoOn) == MEMBERS
    assert "rank 1 did not come to the end of step 5" in job.news[-1]
    assert job.coordinator.phase is Phase.RUNNING
    assert not job.coordinator.halting.under_way


def test_what_does_not_get_protected_is_given_up(job: Job) -> None:
    held(job, 4, 4, 4)
    halted(job, 5)
    job.tell(Tick(), HALT_SECONDS + PROTECT_SECONDS)
    assert "step 5 was not protected" in job.news[-1]
    assert asked(job, GoOn) == MEMBERS


def test_a_rank_that_cannot_capture_lets_all_go_on_at_once(job: Job) -> None:
    """Its loss is not finite, say."""
    held(job, 4, 4, 4)
    halted(job, 5, (1,), sealed=False)
    assert asked(job, GoOn) == MEMBERS
    halted(job, 5, (0, 2))
    assert job.coordinator.phase is Phase.RUNNING


def test_what_was_said_of_an_older_halt_does_not_count(job: Job) -> None:
    held(job, 4, 4, 4)
    halted(job, 5, (1,), sealed=False)
    job.tell(Tick(), RETRY_SECONDS)
    held(job, 8, 8, 8, attempt=2)
    halted(job, 5, sealed=True)
    halted(job, 5, (1,), sealed=False)
    assert job.coordinator.halting.under_way
    protected(job, 9)
    assert job.coordinator.phase is Phase.RUNNING
    halted(job, 9)
    assert job.coordinator.phase is Phase.STOPPING


def test_who_reconnects_hears_the_last_word_again(job: Job) -> None:
    job.leave("node-2")
    job.join("node-2", generation=1, stopped=1)
    assert len(job.to("node-2", Hold)) == 2
    held(job, 4, 4, 4)
    job.leave("node-2")
    job.join("node-2", generation=1, stopped=1)
    assert len(job.to("node-2", HaltAfter)) == 2


def test_an_operator_who_thinks_better_of_it_lets_the_ranks_go_on(job: Job) -> None:
    held(job, 4, 4, 4)
    job.tell(UncordonNode("node-1"))
    assert asked(job, GoOn) == MEMBERS
    halted(job, 5)
    protected(job, 5)
    assert job.coordinator.phase is Phase.RUNNING


def test_a_rank_that_ends_meanwhile_voids_it(job: Job) -> None:
    held(job, 4, 4, 4)
    job.exit(0, code=0, finished=True)
    assert asked(job, GoOn) == MEMBERS


def test_a_fault_voids_it_and_the_node_leaves_if_that_costs_nothing(job: Job) -> None:
    held(job, 4, 4, 4)
    halted(job, 5, (0, 2))
    job.exit(1, code=1)
    assert job.coordinator.phase is Phase.STOPPING
    assert not job.coordinator.halting.under_way
    job.stop_all({snapshot(4): WHOLE, snapshot(5, slot=1): DATA})
    assert job.members() == ["node-0", "node-1", "node-2"]
    job.step_all(6)
    assert job.to("node-0", Hold)[-1].generation == 2


def test_a_new_controller_goes_on_with_it(job: Job) -> None:
    held(job, 4, 4)
    assert vars(job.replayed().halting)["_held"] == {"node-0": 4, "node-1": 4}


def test_a_job_that_ends_meanwhile_waits_for_nothing_of_it(job: Job) -> None:
    held(job, 4, 4, 4)
    for rank in range(3):
        job.exit(rank, code=0, finished=True)
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.halting.deadline is None
