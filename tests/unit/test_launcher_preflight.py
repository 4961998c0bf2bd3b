"""With ``--preflight``: who is checked, who is let in, and how the job ends if too few are."""

from __future__ import annotations

import msgspec
import pytest
from unit.coordinator_job import Job, config

from ftrain_launcher.events import CheckNodes, ControllerRestarted, Left, NodeChecked
from ftrain_launcher.membership import NodeState, Phase
from ftrain_launcher.policy import EXIT_NODES


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
    job.tell(NodeChecked("node-1", False, "its processor computes wrongly"))
    passed(job, "node-3")
    assert job.members() == ["node-0", "node-2", "node-3"]
    assert job.coordinator.nodes["node-1"].state is NodeState.CORDONED
    assert "preflight: node-1 gets no ranks: its processor computes wrongly" in job.news


def test_the_job_ends_with_what_was_found_if_too_few_are_left() -> None:
    job, _ = started(nodes=2, spares=0)
    passed(job, "node-0")
    job.tell(NodeChecked("node-1", False, "its processor computes wrongly"))
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
