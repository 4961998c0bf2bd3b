"""What no other number of ranks can resume: a job of MIN to MAX nodes stays at its size, like one of fixed size."""

from __future__ import annotations

import pytest
from unit.coordinator_job import WHOLE, Job, snapshot
from unit.elastic_job import elastic, lose_one, running, training

from ftrain_launcher.commands import show
from ftrain_launcher.control import views
from ftrain_launcher.from_agent import StateDescribed, StateUndescribed
from ftrain_launcher.job.events import ControllerRestarted, CordonNode, Leave, Progress, Tick, UncordonNode
from ftrain_launcher.job.growth import GROW_AFTER_SECONDS
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_NODES

WHY = "nothing tells what ranks have of net.weight"
REASON = "no other number of ranks can resume the job's state"


def say_so(job: Job) -> None:
    """Every node says it, as its ranks begin with the first capture."""
    for node in job.members():
        job.tell(StateUndescribed(node, job.coordinator.formed, WHY))


def bound() -> Job:
    """Four nodes train, and a snapshot is protected that no other number of ranks can resume."""
    job = Job(elastic())
    running(job)
    say_so(job)
    return job


def on_hosts() -> Job:
    """The same on four hosts."""
    job = Job(elastic(hosts=True))
    for number in range(4):
        job.come(f"host-{number}")
    job.stop_all()
    job.step_all()
    job.tell(Progress(1, 0, 0))
    say_so(job)
    return job


def test_a_lost_node_is_waited_for_and_the_others_keep_their_positions() -> None:
    job = bound()
    told = f"warning: the job stays at 4 nodes, and waits for another one where one is lost: {REASON}: {WHY}"
    assert [text for text in job.news if REASON in text] == [told]
    lose_one(job, "node-1")
    assert job.coordinator.phase is Phase.STOPPING
    assert job.coordinator.positions == ["node-0", None, "node-2", "node-3"]
    assert job.coordinator.incidents[-1].decision == f"waits for another node: {REASON}"
    assert job.started[-1] == "node-4", "an emulated one is asked for at once"
    job.join("node-4")
    job.stopped("node-4")
    assert job.coordinator.positions == ["node-0", "node-4", "node-2", "node-3"]
    for form in job.forms().values():
        assert (form.restore, form.origin, len(form.peers), form.world) == (snapshot(5), None, 4, 1)
    [incident] = job.coordinator.incidents
    assert incident.decision == f"waits for another node: {REASON}; node-4 takes over from node-1"
    assert incident.steps_lost == 0


def test_where_no_host_comes_the_job_ends_and_says_why() -> None:
    job = on_hosts()
    lose_one(job, "node-1", 0)
    assert f"waiting for a host: 1 of 4 are missing ({REASON})" in job.news
    job.tell(Tick(), after=299.0)
    assert job.coordinator.phase is Phase.STOPPING
    job.tell(Tick(), after=1.1)
    assert job.coordinator.exit_code == EXIT_NODES
    assert job.coordinator.exit_message == f"1 of 4 hosts did not come within 300 s (--join-timeout-seconds) ({REASON})"


def test_a_host_that_comes_in_time_takes_the_lost_ones_position() -> None:
    job = on_hosts()
    lose_one(job, "node-0", 0)
    come = job.come("host-4")
    job.stopped(come)
    assert job.coordinator.positions == [come, "node-1", "node-2", "node-3"]
    assert job.forms()[come].restore == snapshot(0)
    job.step_all(1)
    assert job.coordinator.phase is Phase.RUNNING


def test_before_its_first_capture_the_job_may_still_go_on_with_fewer() -> None:
    """There is nothing that they could not resume: they begin anew, and stay at their number from their capture on."""
    job = Job(elastic())
    job.run()
    job.lose("node-1")
    job.stop_all({})
    assert job.coordinator.positions == ["node-0", "node-2", "node-3"]
    assert (job.coordinator.restore, job.coordinator.phase) == (None, Phase.RUNNING)
    job.step_all()
    say_so(job)
    job.join(job.started[-1])
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    assert not job.coordinator.halting.under_way, "the fourth is a spare now"
    job.lose("node-2")
    for node in ("node-0", "node-3"):
        job.stopped(node, {snapshot(5, 2): WHOLE})
    job.stopped(job.started[-1])
    assert job.coordinator.positions == ["node-0", job.started[-1], "node-3"]
    assert {form.restore for form in job.forms().values()} == {snapshot(5, 2)}


def test_newcomers_are_spares() -> None:
    job = training(3, elastic(hosts=True))
    say_so(job)
    job.come("host-3")
    job.tell(Tick(), after=GROW_AFTER_SECONDS)
    job.tell(Tick(), after=60.0)
    assert not job.coordinator.halting.under_way
    assert (len(job.members()), job.coordinator.nodes["node-3"].state) == (3, NodeState.IDLE)


@pytest.mark.parametrize("leave", [Leave.SOON, Leave.NOW])
def test_a_drain_waits_for_another_node(leave: Leave) -> None:
    job = on_hosts()
    job.tell(CordonNode("node-1", "its fan is loud", leave))
    job.tell(Tick(), after=60.0)
    assert (job.coordinator.generation, job.coordinator.halting.under_way) == (1, False)
    assert job.coordinator.quarantine.hindrance == f"no other node is there to take them ({REASON})"
    job.come("host-4")
    assert job.coordinator.quarantine.hindrance == ""


def test_a_node_that_comes_back_elsewhere_makes_no_new_world() -> None:
    """As in a job of one size: what it holds of its old position is decoded, and nothing is re-sharded."""
    job = on_hosts()
    spare = job.come("host-4")
    job.tell(CordonNode("node-1", "its fan is loud"))
    job.exit(0, signal=9)
    for node in ("node-0", "node-1", "node-2"):
        job.stopped(node, {snapshot(0): WHOLE})
    job.stopped("node-3", {snapshot(0): WHOLE})
    assert job.coordinator.positions == ["node-0", spare, "node-2", "node-3"]
    job.lose("node-2")
    job.tell(UncordonNode("node-1", force=True))
    assert job.coordinator.positions == ["node-0", spare, "node-1", "node-3"]
    for node, held in (("node-0", {snapshot(0): WHOLE}), ("node-3", {snapshot(0): WHOLE}), ("node-1", {})):
        job.stopped(node, held)
    if job.coordinator.phase is Phase.STOPPING:
        job.stopped(spare, {snapshot(0): WHOLE})
    assert {(form.restore, form.origin) for form in job.forms().values()} == {(snapshot(0), None)}


def test_a_controller_that_is_started_again_knows_it() -> None:
    job = bound()
    again = job.replayed()
    again.handle(ControllerRestarted(), job.now)
    assert (again.size_reason, again._roster.sizes.least, again._roster.sizes.is_kept) == (REASON, 4, True)
    size = views.nodes(again, job.now)["size"]
    assert (size["reason"], show.size_in_words(size)) == (REASON, f"4 of 2:4 nodes ({REASON})")


def describe_again(job: Job, version: int, *nodes: str) -> None:
    for node in nodes or job.members():
        job.tell(StateDescribed(node, job.coordinator.formed, version))


def test_once_a_snapshot_is_safe_that_others_can_resume_the_size_may_change_again() -> None:
    job = bound()
    describe_again(job, 7, "node-0", "node-1", "node-2")
    job.tell(Progress(1, 7, 7))
    assert job.coordinator.size_reason == REASON, "one node's ranks still say nothing"
    describe_again(job, 8, "node-3")
    job.tell(Progress(1, 8, 7))
    assert job.coordinator.size_reason == REASON, "what is safe is older"
    job.tell(Progress(1, 9, 8))
    assert job.news[-1] == "the job may change its number of nodes again: since step 8 any can resume its state"
    assert (job.coordinator.size_reason, views.nodes(job.coordinator, job.now)["size"]["reason"]) == ("", None)
    lose_one(job, "node-1", 8)
    assert job.coordinator.positions == ["node-0", "node-2", "node-3"]
    assert {form.origin.snapshot for form in job.forms().values() if form.origin} == {snapshot(8)}
    assert job.replayed().size_reason == ""


def test_it_is_bound_again_by_the_next_one_that_others_cannot_resume() -> None:
    job = bound()
    describe_again(job, 6)
    job.tell(Progress(1, 6, 6))
    job.tell(StateUndescribed("node-2", 1, WHY))
    job.tell(Progress(1, 7, 7))
    assert job.coordinator.size_reason == REASON
    assert sum(REASON in text for text in job.news) == 2
    lose_one(job, "node-1", 7)
    assert job.coordinator.positions == ["node-0", None, "node-2", "node-3"]


def test_what_was_said_in_an_older_generation_sets_nobody_free() -> None:
    job = bound()
    lose_one(job, "node-1")
    describe_again(job, 6)  # of the generation that is over
    job.join("node-4")
    job.stopped("node-4")
    job.step_all(6)
    formed = job.coordinator.formed
    job.tell(Progress(formed, 6, 6))
    assert job.coordinator.size_reason == REASON
    describe_again(job, 7)
    job.tell(Progress(formed, 7, 7))
    assert job.coordinator.size_reason == ""


def test_a_job_of_one_size_is_as_it_was() -> None:
    job = Job(elastic(4, 4))
    running(job)
    news = list(job.news)
    say_so(job)
    assert (job.news, job.coordinator.size_reason) == (news, "")


def test_who_says_it_while_the_next_generation_is_being_formed_is_heard() -> None:
    job = Job(elastic())
    running(job)
    job.lose("node-1")
    job.tell(StateUndescribed("node-3", 1, WHY))
    job.stop_all({snapshot(5): WHOLE})
    assert job.coordinator.phase is Phase.STOPPING
    assert len(job.coordinator.positions) == 4
