"""A controller that is started again knows what the one before knew, and says again what may not have been heard."""

from __future__ import annotations

import pytest
from simulation.checkers import state_of
from unit.coordinator_job import BOTH, Job

from ftrain_launcher.engine_messages import StartNode, StopJob
from ftrain_launcher.from_agent import RankRestored
from ftrain_launcher.job.events import ControllerRestarted, EndJob, Tick
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.to_agent import Form, Shutdown, Stop


def test_a_new_controller_knows_what_the_old_one_knew_and_nothing_happens(job: Job) -> None:
    assert state_of(job.replayed()) == state_of(job.coordinator)
    job.tell(ControllerRestarted())
    for n in range(3):
        job.join(f"node-{n}", generation=1, stopped=1)
    job.join("node-3")
    assert job.sent == []
    assert job.coordinator.next_deadline() is None


@pytest.mark.parametrize("answered", [True, False])
def test_stop_is_sent_again_whether_or_not_it_was_answered(job: Job, answered: bool) -> None:
    job.exit(2, signal=9)
    job.tell(ControllerRestarted())
    job.sent.clear()
    job.join("node-1", generation=0 if answered else 1, stopped=2 if answered else 1)
    assert job.to("node-1", Stop) == [Stop(2, host_store=False)]


def test_form_is_sent_again_to_a_node_that_never_got_it(job: Job) -> None:
    job.exit(2, signal=9)
    job.stop_all(BOTH)
    first = job.forms()["node-1"]
    job.tell(ControllerRestarted())
    job.sent.clear()
    job.join("node-0", generation=2, stopped=2)
    job.join("node-1", generation=0, stopped=2)
    assert job.sent == [("node-1", first)]


def test_shutdown_is_sent_again(job: Job) -> None:
    job.tell(StopJob("enough", 1))
    job.tell(ControllerRestarted())
    job.sent.clear()
    job.join("node-1", generation=1, stopped=1)
    assert [m.reason for m in job.to("node-1", Shutdown)] == ["enough"]  # type: ignore[union-attr]
    job.leave("node-1")
    job.tell(Tick(), after=60)
    assert job.end == EndJob(1, "enough")


def test_the_end_is_said_again_if_nobody_heard_it(job: Job) -> None:
    job.tell(StopJob("enough", 1))
    for node in list(job.coordinator.nodes):
        job.leave(node)
    assert job.tell(ControllerRestarted()) == [EndJob(1, "enough")]


def test_nodes_that_could_not_join_while_the_controller_was_away_get_time_to() -> None:
    job = Job()
    job.tell(ControllerRestarted(), after=job.config.start_timeout_seconds + 1)
    job.tell(Tick(), after=1)
    assert not job.reaped
    for node in list(job.started):
        job.join(node)
    assert job.started == [f"node-{n}" for n in range(4)]


def test_nodes_that_are_away_while_gathering_are_not_replaced() -> None:
    job = Job()
    for n in range(3):
        job.join(f"node-{n + 1}")
    job.tell(ControllerRestarted())
    for n in range(4):
        job.join(f"node-{n}")
    assert job.started == [f"node-{n}" for n in range(4)]
    assert job.coordinator.phase is Phase.STOPPING


def test_incident_times_are_those_of_the_ranks(job: Job) -> None:
    job.exit(2, signal=9)
    detected = job.now
    job.stop_all(BOTH)
    formed = job.now
    for rank, moment in ((0, 200.0), (1, 202.0), (2, 201.0)):
        job.tell(RankRestored(f"node-{rank}", 2, rank, 5, moment))
    job.step_all(6)
    timeline = job.coordinator.incidents[-1].timeline
    assert (timeline.detected, timeline.decided, timeline.formed) == (detected, formed, formed)
    assert timeline.restored == 202.0
    assert timeline.first_step is not None


def test_starts_and_forms_are_never_said_twice(job: Job) -> None:
    job.lose("node-1")
    job.stop_all(BOTH)
    forms = [m for _, m in job.sent if isinstance(m, Form)]
    assert len(forms) == 3
    commands = job.tell(Tick(), after=1)
    assert not [c for c in commands if isinstance(c, StartNode)]
