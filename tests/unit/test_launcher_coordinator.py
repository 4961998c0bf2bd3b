"""What the coordinator does about dead workers, lost nodes, stores, daemons and agents."""

from __future__ import annotations

import pytest
from unit.coordinator_job import BOTH, DATA, Job, config, raised, snapshot

from ftrain_launcher.from_agent import Trouble
from ftrain_launcher.job.events import StoodStill, Tick
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_LOST
from ftrain_launcher.to_agent import Shutdown, Stop


def test_a_killed_worker_restarts_all_from_the_newest_sealed_snapshot(job: Job) -> None:
    job.exit(2, signal=9, step=5)
    assert {node for node, m in job.sent if isinstance(m, Stop)} == {"node-0", "node-1", "node-2"}
    assert not job.forms()
    job.stop_all(BOTH)
    assert {m.restore for m in job.forms().values()} == {snapshot(5, slot=1)}
    job.step_all()
    incident = job.coordinator.incidents[-1]
    assert (incident.steps_lost, incident.resumed_from, incident.closed) == (0, 5, True)
    assert incident.cause is not None
    assert incident.cause.reason == "rank 2 on node-2 was killed by SIGKILL after step 5"


def test_a_lost_node_is_replaced_by_a_spare_with_the_same_ranks(job: Job) -> None:
    before = {rank: r.node for rank, r in job.coordinator.ranks.items()}
    job.lose("node-1")
    assert job.reaped == ["node-1"]
    job.stop_all(BOTH)
    assert job.forms()["node-3"].position == 1
    assert {rank: r.node for rank, r in job.coordinator.ranks.items()} == before | {1: "node-3"}
    assert job.coordinator.incidents[-1].steps_lost == 1
    assert job.coordinator.restore == snapshot(4)


def test_without_a_spare_a_new_node_is_asked_for() -> None:
    job = Job(config(spares=0))
    job.run()
    job.lose("node-0")
    assert job.started[-1] == "node-3"
    job.stop_all(BOTH)
    assert not job.forms()
    job.join("node-3")
    job.stopped("node-3", port=8)
    assert job.forms()["node-3"].store_port == 8


def test_a_used_spare_is_replaced_once_training_goes_on(job: Job) -> None:
    job.lose("node-1")
    job.stop_all(BOTH)
    assert "node-4" not in job.started
    job.step_all()
    assert job.started[-1] == "node-4"


def test_an_agent_that_is_back_within_the_grace_time_changes_nothing(job: Job) -> None:
    job.leave("node-1")
    job.tell(Tick(), after=job.config.agent_grace_seconds - 1)
    job.join("node-1", generation=1, stopped=1)
    job.tell(Tick(), after=60)
    assert job.coordinator.phase is Phase.RUNNING
    assert job.sent == []
    assert job.coordinator.incidents == []


def test_an_agent_that_stays_away_is_a_lost_node_since_it_left(job: Job) -> None:
    job.leave("node-1")
    left = job.now
    job.tell(Tick(), after=job.config.agent_grace_seconds)
    assert job.coordinator.nodes["node-1"].state is NodeState.LOST
    assert job.coordinator.incidents[-1].timeline.detected == left
    job.join("node-1", generation=1, stopped=1)
    assert job.to("node-1", Shutdown)


def test_time_in_which_the_controller_stood_still_is_not_the_agents(job: Job) -> None:
    job.leave("node-1")
    left = job.now
    job.tell(StoodStill(30.0), after=30.0)
    job.tell(Tick(), after=job.config.agent_grace_seconds - 1)
    assert job.coordinator.phase is Phase.RUNNING
    assert job.coordinator.next_deadline() == left + 30.0 + job.config.agent_grace_seconds
    job.tell(Tick(), after=1)
    assert job.coordinator.nodes["node-1"].state is NodeState.LOST


def test_an_agent_that_is_back_without_its_workers_is_a_fault(job: Job) -> None:
    job.leave("node-1")
    job.join("node-1")
    assert job.coordinator.incidents[-1].signs[0].kind == "agent_lost"
    assert job.to("node-1", Stop)


def test_an_agent_whose_line_broke_while_it_took_its_ranks_is_no_fault(job: Job) -> None:
    job.leave("node-1")
    job.join("node-1", stopped=1, forming=True)
    assert job.sent == []
    assert job.coordinator.incidents == []


def test_an_agent_that_is_back_without_one_of_its_workers_is_a_fault() -> None:
    job = Job(config(nproc=2))
    job.run()
    job.exit(2, code=0, finished=True)
    job.leave("node-1")
    job.join("node-1", generation=1, stopped=1, ranks=(3,))
    assert job.sent == []  # Rank 2 had finished.
    job.leave("node-1")
    job.join("node-1", generation=1, stopped=1, ranks=())
    assert job.to("node-1", Stop)
    assert job.coordinator.incidents[-1].signs[0].reason == "without rank 3"


def test_two_lost_nodes_end_the_job_at_once_and_say_what_would_have_helped(job: Job) -> None:
    job.lose("node-1")
    job.stopped("node-0", BOTH)
    job.lose("node-2")
    job.stop_all(BOTH)
    for node in ("node-0", "node-3"):
        job.leave(node)
    assert job.end is not None  # Nobody waited for a new node.
    assert job.end.exit_code == EXIT_LOST
    assert "Lost: node-1 (position 1), node-2 (position 2)" in job.end.message
    assert "would be complete with position 1 or 2 back" in job.end.message


@pytest.mark.parametrize(("gate", "sealed", "lost"), [("node-0", 4, 0), ("node-0", 5, 1), ("node-2", 4, 1)])
def test_what_the_gate_never_heard_the_lost_node_seal_is_no_sealed_step(
    job: Job, gate: str, sealed: int, lost: int
) -> None:
    job.lose("node-1")
    for node in ("node-0", "node-2", "node-3"):
        knows = (5, sealed, 5) if node == gate else ()
        job.stopped(node, BOTH if node != "node-3" else None, sealed=knows)
    assert job.coordinator.restore == snapshot(4)
    assert job.coordinator.incidents[-1].steps_lost == lost


def test_before_anything_was_protected_the_job_begins_anew() -> None:
    job = Job()
    job.run()
    job.lose("node-1")
    job.stop_all({snapshot(0): DATA})
    assert job.forms()["node-3"].restore is None
    assert job.coordinator.incidents[-1].steps_lost == 1


def test_a_snapshot_that_was_never_protected_is_no_reason_to_end(job: Job) -> None:
    job.exit(0, signal=9)
    job.stop_all({snapshot(0): DATA})
    job.lose("node-1")
    job.stop_all({snapshot(0): DATA})
    assert job.forms()["node-3"].restore is None
    assert job.coordinator.incidents[-1].steps_lost == 1


def test_when_all_nodes_are_lost_nobody_knows_what_there_was() -> None:
    job = Job(config(nodes=1, spares=1, parity=0))
    job.run()
    job.lose("node-0")
    job.stopped("node-1")
    job.leave("node-1")
    assert job.end is not None
    assert job.end.exit_code == EXIT_LOST


def test_a_lost_store_is_the_next_generation_with_a_fresh_one(job: Job) -> None:
    job.tell(Trouble("node-0", 1, "store_lost", "signal 9"))
    job.exit(1, failure=raised("RuntimeError: TCPStore", communication=True))
    for node in job.members():
        job.stopped(node, BOTH, port=99)
    assert job.forms()["node-1"].store_port == 99
    cause = job.coordinator.incidents[-1].cause
    assert cause is not None
    assert cause.kind == "store_lost"


def test_a_dead_daemon_stops_nobody(job: Job) -> None:
    job.tell(Trouble("node-1", 1, "daemon_exit", "signal 9"))
    assert job.coordinator.phase is Phase.RUNNING
    assert [(i.closed, i.seconds) for i in job.coordinator.incidents] == [(True, None)]
    assert "training goes on" in job.news[-1]
