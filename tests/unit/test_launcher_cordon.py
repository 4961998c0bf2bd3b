"""Nodes that an operator cordons or drains: when they give their ranks away, and how they come back."""

from __future__ import annotations

import pytest
from unit.coordinator_job import BOTH, DATA, WHOLE, Job, config, snapshot
from unit.diagnosed_job import again, cordon, hang_twice, last, move, protect, running_job, started

from ftrain_launcher.control import views
from ftrain_launcher.job.events import CheckNodes, CordonNode, Leave, NodeChecked, Tick, UncordonNode
from ftrain_launcher.job.halting import HOLD_SECONDS
from ftrain_launcher.job.membership import NodeState, Phase

job = pytest.fixture(running_job)


def test_a_cordoned_node_gives_its_ranks_away_at_the_next_fault(job: Job) -> None:
    cordon(job, "node-1")
    assert job.coordinator.phase is Phase.RUNNING
    job.exit(2, signal=9)
    again(job, BOTH)
    assert job.members() == ["node-0", "node-3", "node-2"]
    assert job.coordinator.restore == snapshot(4)
    assert last(job).steps_lost == 1


def test_a_cordoned_spare_takes_no_position(job: Job) -> None:
    cordon(job, "node-3")
    job.lose("node-1")
    assert job.started[-1] == "node-4"
    assert job.coordinator.nodes["node-3"].state is NodeState.CORDONED
    job.leave("node-3")
    job.join("node-3")
    assert job.coordinator.nodes["node-3"].position is None


def test_a_cordoned_node_stays_where_the_state_would_be_lost_without_it(job: Job) -> None:
    """One of its group is lost already."""
    cordon(job, "node-1")
    job.tell(CordonNode("node-9", "", Leave.NOW))  # there is none
    job.lose("node-2")
    again(job)
    assert job.members() == ["node-0", "node-1", "node-3"]


def test_a_drain_halts_the_ranks_and_is_no_fault(job: Job) -> None:
    protect(job, 3, sealed=3)
    cordon(job, "node-1", Leave.SOON)
    assert job.coordinator.phase is Phase.RUNNING
    job.halt(4)
    assert job.coordinator.phase is Phase.STOPPING
    again(job)
    assert job.members() == ["node-0", "node-3", "node-2"]
    assert last(job).cause is not None
    assert (last(job).cause.kind, last(job).cause.reason) == (
        "drained",
        "node-1 gives its ranks away (its fan is loud)",
    )
    assert job.coordinator._history._faults_without_progress == 0


def test_a_drain_that_turns_out_to_cost_too_much_is_not_tried_again(job: Job) -> None:
    """The snapshot was protected when the ranks stopped, but is not now."""
    cordon(job, "node-1", Leave.SOON)
    job.halt(4)
    again(job, {snapshot(4): DATA})
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert "node-1 keeps its ranks: without it too little of the state would be left" in job.news
    assert not job.coordinator.halting.under_way


def test_of_two_that_are_drained_at_once_one_goes_after_the_other() -> None:
    """Each could be rebuilt from the others, but not both."""
    job = started(spares=2)
    cordon(job, "node-1", Leave.SOON)
    cordon(job, "node-2", Leave.SOON)
    move(job, 4)
    assert job.members() == ["node-0", "node-3", "node-2"]
    move(job, 8)
    assert job.members() == ["node-0", "node-3", "node-4"]
    assert not [line for line in job.news if "keeps its ranks" in line]


def test_what_hinders_a_drain_is_told() -> None:
    job = started(spares=0)
    cordon(job, "node-1", Leave.SOON)
    assert _hindrance(job) == "no other node is there to take them"
    job.join(job.started[-1])
    job.tell(Tick(), after=HOLD_SECONDS)
    job.tell(Tick(), after=HOLD_SECONDS)
    assert "no answer from node-0" in _hindrance(job)


def _hindrance(job: Job) -> str:
    return str(views.node(job.coordinator, job.coordinator.nodes["node-1"], ())["cordon"]["hindrance"])


def test_cordon_now_waits_only_for_a_first_protected_snapshot(job: Job) -> None:
    cordon(job, "node-1", Leave.NOW)
    assert job.coordinator.phase is Phase.RUNNING
    protect(job, 4)
    assert job.coordinator.phase is Phase.STOPPING


def test_a_move_that_turns_out_to_cost_too_much_is_not_tried_again(job: Job) -> None:
    protect(job, 4)
    cordon(job, "node-1", Leave.NOW)
    again(job, {snapshot(4): DATA})
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert "node-1 keeps its ranks: without it too little of the state would be left" in job.news
    protect(job, 8)
    assert job.coordinator.phase is Phase.RUNNING


def test_without_parity_nothing_is_moved_for_its_own_sake() -> None:
    job = Job(config(parity=0))
    job.run()
    protect(job, 4)
    cordon(job, "node-1", Leave.NOW)
    assert job.coordinator.phase is Phase.RUNNING
    assert "without parity" in job.news[-1]
    hang_twice(job)
    again(job)
    assert job.members() == ["node-0", "node-1", "node-2"]


def test_a_cordoned_node_comes_back_once_it_has_passed_its_check(job: Job) -> None:
    cordon(job, "node-3")
    assert job.tell(UncordonNode("node-3")) == [CheckNodes(("node-3",))]
    job.tell(NodeChecked("node-3", False, "its disk is slow"))
    assert job.coordinator.nodes["node-3"].state is NodeState.CORDONED
    assert job.news[-1] == "node-3 stays cordoned: its health check failed (its disk is slow)"
    job.tell(UncordonNode("node-3"))
    job.leave("node-3")
    job.join("node-3")
    job.tell(NodeChecked("node-3", True, ""))
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE
    assert job.coordinator.nodes["node-3"].health is not None


def test_a_check_that_nobody_asked_for_lets_nobody_in(job: Job) -> None:
    cordon(job, "node-3")
    job.tell(NodeChecked("node-3", True, ""))
    assert job.coordinator.nodes["node-3"].state is NodeState.CORDONED


def test_uncordon_by_force_and_of_a_member_that_has_not_left_yet(job: Job) -> None:
    cordon(job, "node-3")
    job.tell(UncordonNode("node-3", force=True))
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE
    cordon(job, "node-1", Leave.SOON)
    job.tell(UncordonNode("node-1"))
    protect(job, 4)
    assert job.coordinator.phase is Phase.RUNNING


def test_a_node_that_is_back_does_not_pass_off_what_it_held_for_another_position(job: Job) -> None:
    protect(job, 4)
    cordon(job, "node-1", Leave.NOW)
    again(job)
    job.tell(UncordonNode("node-1", force=True))
    job.lose("node-2")
    assert job.coordinator.nodes["node-1"].position == 2
    held = {snapshot(9, 2): WHOLE}
    job.stopped("node-0", held)
    job.stopped("node-3", held)
    job.coordinator.nodes["node-1"].position = 1  # it answers with what it held there
    inventory_of_old_position = {snapshot(4): WHOLE}
    position, job.coordinator.nodes["node-1"].position = job.coordinator.nodes["node-1"].position, 2
    assert position == 1
    job.stopped("node-1", inventory_of_old_position)
    assert job.coordinator.restore == snapshot(9, 2)
