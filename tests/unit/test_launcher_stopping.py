"""What comes at the wrong moment: while one generation is stopped and the next one formed, or twice."""

from __future__ import annotations

from unit.coordinator_job import BOTH, Job, raised

from ftrain_launcher.from_agent import Stopped, Trouble
from ftrain_launcher.job.events import Left, Progress, Tick
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.to_agent import STORE_SECONDS_MAX, Stop
from ftrain_snapshot.inventory import Inventory


def test_an_exit_that_arrives_while_stopping_belongs_to_the_same_incident(job: Job) -> None:
    job.exit(0, failure=raised("RuntimeError: gloo", communication=True))
    job.exit(2, signal=9)
    job.stop_all(BOTH)
    assert job.coordinator.incidents_total == 1
    cause = job.coordinator.incidents[0].cause
    assert cause is not None
    assert [s.rank for s in cause.suspects] == [2]


def test_an_exit_of_an_older_generation_is_dropped(job: Job) -> None:
    late = job.exit_of(0, signal=9)
    job.exit(2, signal=9)
    job.stop_all(BOTH)
    job.tell(late)
    assert job.coordinator.phase is Phase.RUNNING


def test_an_exit_told_after_its_node_stopped_is_still_taken_in(job: Job) -> None:
    late = job.exit_of(1, failure=raised("ValueError: boom"), step=5)
    job.exit(0, failure=raised("RuntimeError: gloo", communication=True), step=5)
    job.stopped("node-1", BOTH)
    job.tell(late)
    job.stop_all(BOTH, but=("node-1",))
    cause = job.coordinator.incidents[0].cause
    assert cause is not None
    assert cause.reason.startswith("rank 1 on node-1 raised ValueError")


def test_exits_count_while_the_generation_is_formed_a_second_time(job: Job) -> None:
    late = job.exit_of(1, failure=raised("ValueError: boom"), step=5)
    job.exit(0, failure=raised("RuntimeError: gloo", communication=True), step=5)
    job.tell(Trouble("node-0", 2, "store_lost", "before it was used"))
    assert job.coordinator.generation == 3
    job.tell(late)
    assert len(job.coordinator.incidents[0].signs) == 3


def test_a_node_lost_after_it_acknowledged_is_replaced_before_anything_goes_out(job: Job) -> None:
    job.exit(2, signal=9)
    job.stopped("node-0", BOTH)
    job.stopped("node-1", BOTH)
    job.lose("node-1")
    job.stopped("node-2", BOTH)
    job.stopped("node-3")
    assert not job.forms()
    assert len(job.to("node-0", Stop)) == 2  # What it holds may have grown since it said so.
    job.stopped("node-0", BOTH)
    assert set(job.forms()) == {"node-0", "node-3", "node-2"}
    assert job.coordinator.incidents_total == 1


def test_a_lost_store_host_hands_the_store_to_the_node_that_takes_its_position(job: Job) -> None:
    job.exit(2, signal=9)
    job.stopped("node-0", BOTH, port=1)
    job.lose("node-0")
    assert job.to("node-3", Stop) == [Stop(2, host_store=True)]
    job.stopped("node-3", port=2)
    job.stopped("node-1", BOTH)
    job.stopped("node-2", BOTH)
    assert {(m.store_host, m.store_port) for m in job.forms().values()} == {("node-3", 2)}


def test_a_spare_that_dies_right_after_it_got_a_position_is_replaced(job: Job) -> None:
    job.lose("node-1")
    job.lose("node-3")
    assert job.started[-1] == "node-4"
    job.join("node-4")
    job.stop_all(BOTH)
    assert job.forms()["node-4"].position == 1
    assert job.coordinator.incidents_total == 1


def test_a_node_that_does_not_stop_in_time_is_lost(job: Job) -> None:
    job.exit(2, signal=9)
    job.stop_all(BOTH, but=("node-1",))
    job.tell(Tick(), after=job.config.stop_timeout_seconds)
    assert job.coordinator.nodes["node-1"].state is NodeState.LOST
    assert job.to("node-3", Stop)


def test_the_node_that_hosts_the_store_has_time_to_start_it() -> None:
    job = Job()
    for node in list(job.started):
        job.join(node)
    job.stop_all(but=("node-0",))
    job.tell(Tick(), after=STORE_SECONDS_MAX)
    job.stopped("node-0")
    assert len(job.forms()) == job.config.nodes
    assert not job.coordinator.incidents_total


def test_the_same_answer_twice_changes_nothing(job: Job) -> None:
    job.exit(2, signal=9)
    job.stopped("node-0", BOTH)
    job.stopped("node-0", BOTH)
    assert not job.forms()
    job.stop_all(BOTH)
    sent = len(job.sent)
    job.tell(Stopped(node="node-0", generation=2, inventory=Inventory(), store_port=8))
    assert len(job.sent) == sent


def test_node_gone_before_its_connection_closes(job: Job) -> None:
    connection = job.connection("node-1")
    job.lose("node-1")
    job.tell(Left("node-1", connection))
    job.lose("node-1")
    assert job.coordinator.nodes["node-1"].state is NodeState.LOST
    assert job.coordinator.incidents_total == 1


def test_an_old_connection_that_closes_late_is_of_no_matter(job: Job) -> None:
    old = job.connection("node-1")
    job.join("node-1", generation=1, stopped=1)
    job.tell(Left("node-1", old))
    assert job.coordinator.nodes["node-1"].state is NodeState.ACTIVE


def test_a_member_that_is_back_while_stopping_is_asked_again(job: Job) -> None:
    job.exit(2, signal=9)
    job.stopped("node-0", BOTH, port=1)
    job.leave("node-0")
    job.stopped("node-1", BOTH)
    job.stopped("node-2", BOTH)
    job.join("node-0", stopped=2)
    assert not job.forms()
    job.stopped("node-0", BOTH, port=2)
    assert {m.store_port for m in job.forms().values()} == {2}


def test_levels_of_an_older_generation_are_dropped(job: Job) -> None:
    job.tell(Progress(1, 8, 7))
    job.exit(2, signal=9)
    job.stop_all(BOTH)
    job.tell(Progress(1, 9, 9))
    assert (job.coordinator.levels.sealed, job.coordinator.levels.protected) == (5, 5)


def test_people_are_told_once_if_nothing_gets_protected(job: Job) -> None:
    job.tell(Progress(1, 0, None))
    job.tell(Tick(), after=59)
    assert not [line for line in job.news if "protected" in line]
    job.tell(Tick(), after=2)
    job.tell(Tick(), after=100)
    (line,) = [line for line in job.news if "no snapshot has been protected" in line]
    assert "step 0 is sealed" in line


def test_and_not_once_something_was(job: Job) -> None:
    job.tell(Progress(1, 0, None))
    job.tell(Progress(1, 5, 4))
    job.tell(Tick(), after=100)
    assert not [line for line in job.news if "protected" in line]
