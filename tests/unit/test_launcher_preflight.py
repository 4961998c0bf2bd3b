"""With ``--preflight``: who is checked, who is let in, and how the job ends if too few are."""

from __future__ import annotations

import msgspec
import pytest
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain_launcher.job.events import (
    CheckNodes,
    ControllerRestarted,
    CordonNode,
    Leave,
    Left,
    NodeChecked,
    Progress,
    Tick,
    UncordonNode,
)
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_NODES


def started(nodes: int = 3, spares: int = 1) -> tuple[Job, list[CheckNodes]]:
    """A job all of whose nodes have joined, and the checks that it asked for."""
    job = Job(msgspec.structs.replace(config(nodes=nodes, spares=spares), preflight=True))
    asked = []
    for node in list(job.started):
        before = len(job.entries())
        job.join(node)
        assert len(job.entries()) == before + 1
        asked += job.checks
        job.checks.clear()
    return job, asked


def passed(job: Job, *nodes: str) -> None:
    for node in nodes:
        job.tell(NodeChecked(node, True, ""))


def failed(job: Job, node: str) -> None:
    job.tell(NodeChecked(node, False, "its processor computes wrongly"))


def over_hosts(nodes: int = 2, spares: int = 1, come: int = 2) -> Job:
    """A job over hosts, of which so many have come so far."""
    job = Job(msgspec.structs.replace(config(nodes=nodes, spares=spares, hosts=True), preflight=True))
    for n in range(come):
        job.come(f"host-{n}")
    return job


def training(spares: int = 1) -> Job:
    """A job of three nodes that trains, all of whose nodes were checked."""
    job, _ = started(spares=spares)
    passed(job, *job.coordinator.nodes)
    job.stop_all()
    job.step_all()
    job.checks.clear()
    return job


def again(job: Job) -> None:
    """All stop, with a protected snapshot, and train again."""
    job.stop_all({snapshot(4): WHOLE})
    job.stop_all({snapshot(4): WHOLE})
    job.step_all()


def test_all_that_have_gathered_are_checked_together_and_nothing_begins_before() -> None:
    job, asked = started(spares=0)
    assert asked == [CheckNodes(("node-0", "node-1", "node-2"))]
    passed(job, "node-1", "node-0")
    assert job.coordinator.phase is Phase.GATHERING
    job.tell(NodeChecked("node-2", True, "its clock is +3.0 s from the controller's"))
    assert job.coordinator.phase is Phase.STOPPING
    assert "preflight: node-2 is let in, but its clock is +3.0 s from the controller's" in job.news


def test_a_spare_that_comes_during_the_check_is_checked_after_it() -> None:
    job, asked = started(spares=1)
    assert asked == [CheckNodes(("node-0", "node-1", "node-2"))]
    passed(job, "node-0", "node-1", "node-2")
    assert job.checks == [CheckNodes(("node-3",))]
    passed(job, "node-3")
    assert job.members() == ["node-0", "node-1", "node-2"]


def test_a_spare_takes_the_place_of_one_that_failed() -> None:
    job, _ = started(spares=1)
    passed(job, "node-0", "node-2")
    failed(job, "node-1")
    passed(job, "node-3")
    assert job.members() == ["node-0", "node-2", "node-3"]
    assert job.coordinator.nodes["node-1"].state is NodeState.CORDONED
    assert "node-1 is cordoned (preflight: its processor computes wrongly)" in job.news


def test_the_job_ends_with_what_was_found_if_too_few_are_left() -> None:
    job, _ = started(nodes=2, spares=0)
    passed(job, "node-0")
    failed(job, "node-1")
    assert job.coordinator.exit_code == EXIT_NODES
    assert "node-1: its processor computes wrongly" in job.coordinator.exit_message


def test_one_that_was_away_meanwhile_is_checked_when_it_is_back() -> None:
    job, _ = started(nodes=2, spares=0)
    job.tell(Left("node-1", job.coordinator.nodes["node-1"].connection or 0))
    job.tell(NodeChecked("node-1", False, "its agent is not connected"))
    passed(job, "node-0")
    assert job.coordinator.nodes["node-1"].state is NodeState.AWAY
    job.join("node-1")
    assert job.checks == [CheckNodes(("node-1",))]
    passed(job, "node-1")
    assert job.coordinator.phase is Phase.STOPPING


def test_a_new_controller_asks_again() -> None:
    job, _ = started(nodes=2, spares=0)
    passed(job, "node-0")
    job.tell(ControllerRestarted())
    job.join("node-0")
    assert job.checks == []
    job.join("node-1")
    assert job.checks == [CheckNodes(("node-1",))]


@pytest.mark.parametrize("late", ["node-0", "node-9"])
def test_what_comes_too_late_or_of_nobody_is_of_no_matter(late: str) -> None:
    job, _ = started(nodes=2, spares=0)
    passed(job, "node-0", "node-1")
    job.tell(NodeChecked(late, False, "too late"))
    assert job.coordinator.phase is Phase.STOPPING
    assert job.end is None


# ---- hosts, that come by themselves


def test_if_one_fails_before_the_spare_that_was_asked_for_is_there_the_job_waits_for_it() -> None:
    job = over_hosts()
    passed(job, "node-0")
    failed(job, "node-1")
    assert job.coordinator.phase is Phase.GATHERING
    assert job.news[-1] == "waiting for a host: 1 of 2 are missing"
    job.come("host-2")
    assert job.checks[-1] == CheckNodes(("node-2",))
    passed(job, "node-2")
    assert job.members() == ["node-0", "node-2"]


def test_it_does_not_wait_for_ever_and_says_who_was_turned_down() -> None:
    job = over_hosts()
    passed(job, "node-0")
    failed(job, "node-1")
    job.tell(Tick(), job.config.host_wait_seconds)
    assert job.coordinator.exit_code == EXIT_NODES
    assert job.coordinator.exit_message == (
        "1 of 2 hosts did not come within 300 s (--join-timeout-seconds); "
        "--preflight turned down node-1: its processor computes wrongly"
    )


@pytest.mark.parametrize(("spares", "come"), [(0, 2), (1, 3)])
def test_it_does_not_wait_for_more_hosts_than_were_asked_for(spares: int, come: int) -> None:
    job = over_hosts(spares=spares, come=come)
    passed(job, "node-0")
    failed(job, "node-1")
    if come > 2:
        failed(job, "node-2")
    assert job.coordinator.exit_code == EXIT_NODES
    assert "too few nodes passed --preflight (node-1: its processor computes wrongly" in job.coordinator.exit_message


def test_one_that_is_let_in_again_is_turned_down_no_more() -> None:
    job = over_hosts()
    passed(job, "node-0")
    failed(job, "node-1")
    job.checks.clear()
    job.tell(UncordonNode("node-1", force=True))
    assert job.checks == []
    assert job.members() == ["node-0", "node-1"]


# ---- nodes that come while the job trains


def test_a_spare_that_comes_later_is_checked_when_it_comes() -> None:
    job = training(spares=0)
    job.come("late")
    new = job.started[-1]
    assert job.checks == [CheckNodes((new,))]
    failed(job, new)
    assert job.coordinator.nodes[new].state is NodeState.CORDONED
    assert job.coordinator.phase is Phase.RUNNING


def test_a_spare_that_was_away_is_checked_when_it_is_back() -> None:
    job = training()
    job.leave("node-3")
    assert job.checks == []
    job.join("node-3")
    assert job.checks == [CheckNodes(("node-3",))]


def test_what_is_said_of_a_node_that_was_away_meanwhile_does_not_count() -> None:
    job = training()
    for _ in range(2):
        job.leave("node-3")
        job.join("node-3")
    assert job.checks == [CheckNodes(("node-3",))]
    job.tell(NodeChecked("node-3", False, "it did not answer"))
    assert job.checks == [CheckNodes(("node-3",))] * 2
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE


def test_a_recovery_waits_for_no_check_and_none_begins_beside_it() -> None:
    job = training()
    job.leave("node-3")
    job.exit(0, signal=9)
    job.join("node-3")
    job.lose("node-1")
    assert job.members() == ["node-0", "node-3", "node-2"]
    job.join("node-4")
    job.stop_all({snapshot(4): WHOLE})
    assert job.coordinator.phase is Phase.RUNNING
    assert job.checks == []
    job.step_all()
    assert job.checks == [CheckNodes(("node-4",))]


def test_one_that_was_checked_is_preferred() -> None:
    job = training(spares=2)
    job.leave("node-3")
    job.join("node-3")
    job.lose("node-1")
    assert job.members() == ["node-0", "node-4", "node-2"]


def test_one_that_was_needed_before_its_check_had_ended_gives_its_ranks_away_if_it_fails() -> None:
    job = training()
    job.leave("node-3")
    job.join("node-3")
    job.lose("node-1")
    again(job)
    assert job.members() == ["node-0", "node-3", "node-2"]
    failed(job, "node-3")
    job.join("node-4")
    passed(job, "node-4")
    job.halt(9)
    again(job)
    assert job.members() == ["node-0", "node-4", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.CORDONED


def test_a_drain_waits_until_the_spare_was_checked() -> None:
    job = training()
    job.leave("node-3")
    job.join("node-3")
    job.tell(CordonNode("node-1", "", Leave.NOW))
    job.tell(Progress(job.coordinator.formed, 4, 4))
    assert job.coordinator.phase is Phase.RUNNING
    passed(job, "node-3")
    assert job.coordinator.phase is Phase.STOPPING
