"""What the coordinator does about each fault, and about messages that come at the wrong moment."""

from __future__ import annotations

import pytest
from simulation.checkers import state_of
from unit.coordinator_job import DATA, WHOLE, Job, config, raised, snapshot

from ftrain_launcher.engine_messages import StartNode, StopJob
from ftrain_launcher.job.events import ControllerRestarted, EndJob, HostCame, Left, Progress, StoodStill, Tick
from ftrain_launcher.job.membership import Node, NodeState, Phase
from ftrain_launcher.job.policy import EXIT_LOST, EXIT_NO_PROGRESS, EXIT_NODES, EXIT_PROGRAM, EXIT_USAGE
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.messages import (
    STORE_SECONDS_MAX,
    ArenaShort,
    Form,
    RankRestored,
    Shutdown,
    Stop,
    Stopped,
    Trouble,
)
from ftrain_snapshot.messages import Inventory

BOTH = {snapshot(4): WHOLE, snapshot(5, slot=1): DATA}
"""What each node holds when step 4 is protected and step 5 is sealed."""


# ---- the beginning


def test_the_first_nodes_get_the_first_positions_in_whatever_order_they_come() -> None:
    job = Job()
    for node in reversed(job.started):
        job.join(node)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE


def test_a_spare_takes_the_place_of_a_first_node_that_does_not_come() -> None:
    job = Job()
    for node in ("node-0", "node-2", "node-3"):
        job.join(node)
    assert job.coordinator.phase is Phase.GATHERING
    job.lose("node-1")
    assert job.members() == ["node-0", "node-2", "node-3"]


def test_ranks_go_out_once_all_have_acknowledged() -> None:
    job = Job(config(nodes=2, nproc=2))
    job.gather()
    assert [m.host_store for _, m in job.sent if isinstance(m, Stop)] == [True, False]
    job.stopped("node-1")
    assert not job.forms()
    job.stopped("node-0", port=42)
    assert {n: (m.position, m.store_host, m.store_port) for n, m in job.forms().items()} == {
        "node-0": (0, "node-0", 42),
        "node-1": (1, "node-0", 42),
    }
    assert {r: rank.node for r, rank in job.coordinator.ranks.items()} == {
        0: "node-0",
        1: "node-0",
        2: "node-1",
        3: "node-1",
    }


def test_an_answer_of_one_of_many_nodes_costs_no_look_at_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many answers as nodes: a look each would make a generation of 50,000 nodes take minutes."""
    looks: list[Roster] = []
    members = Roster.members

    def counted(roster: Roster) -> list[Node]:
        looks.append(roster)
        return members(roster)

    monkeypatch.setattr(Roster, "members", counted)
    costs = []
    for nodes in (10, 40):
        job = Job(config(nodes=nodes, spares=0))
        job.run()
        looks.clear()
        job.exit(1)
        job.stop_all()
        costs.append(len(looks))
    assert costs[0] == costs[1]


def test_nodes_that_do_not_start_are_replaced_but_not_for_ever() -> None:
    job = Job(config(nodes=4, spares=0))
    job.join("node-0")
    for node in ("node-1", "node-2"):
        job.lose(node)
    assert job.started == [f"node-{n}" for n in range(6)]
    job.lose("node-4")
    job.leave("node-0")
    assert job.end is not None
    assert job.end.exit_code == EXIT_NODES
    assert "node-4 (killed)" in job.end.message


# ---- dead workers, lost nodes, lost agents


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


# ---- programs that fail


def test_the_same_exception_twice_at_the_same_step_ends_the_job(job: Job) -> None:
    for generation in (1, 2):
        assert job.coordinator.formed == generation
        job.exit(1, failure=raised("ValueError: boom"), step=5)
        job.exit(0, failure=raised("RuntimeError: gloo", communication=True), step=5)
        job.stop_all(BOTH)
    for node in list(job.coordinator.nodes):
        job.leave(node)
    assert job.end is not None
    assert job.end.exit_code == EXIT_PROGRAM
    assert "rank 1 on node-1 raised ValueError: boom after step 5" in job.end.message
    assert job.news.count("Traceback of ValueError: boom") == 1


@pytest.mark.parametrize("first", [0, 1])
def test_who_ends_without_an_error_in_the_middle_is_named_and_not_who_misses_it(job: Job, first: int) -> None:
    accounts = [
        lambda: job.exit(1, code=0, step=5),
        lambda: job.exit(2, failure=raised("RuntimeError: gloo", communication=True), step=5),
    ]
    for again in (False, True):
        accounts[first]()
        accounts[1 - first]()
        job.stop_all(BOTH)
        assert job.coordinator.phase is (Phase.ENDING if again else Phase.RUNNING)
    for incident in job.coordinator.incidents:
        assert incident.cause is not None
        assert [suspect.rank for suspect in incident.cause.suspects] == [1]
    assert job.coordinator.exit_code == EXIT_PROGRAM


def test_a_lost_node_between_two_equal_exceptions_does_not_hide_them(job: Job) -> None:
    job.exit(1, failure=raised("ValueError: boom"), step=5)
    job.stop_all(BOTH)
    job.lose("node-2")
    job.stop_all(BOTH)
    job.exit(1, failure=raised("ValueError: boom"), step=5)
    job.stop_all(BOTH)
    assert (job.coordinator.phase, job.coordinator.exit_code) == (Phase.ENDING, EXIT_PROGRAM)


def test_exit_code_3_twice_names_rank_and_code(job: Job) -> None:
    for _ in range(2):
        job.exit(2, code=3, step=7)
        job.stop_all(BOTH)
    assert job.coordinator.exit_code == EXIT_PROGRAM
    assert "rank 2 on node-2 exited with code 3 after step 7" in job.coordinator.exit_message


def test_sigkill_twice_at_the_same_step_is_no_program_error(job: Job) -> None:
    for _ in range(3):
        job.exit(2, signal=9, step=5)
        job.stop_all(BOTH)
    assert job.coordinator.phase is Phase.RUNNING
    assert job.coordinator.generation == 4


def test_faults_are_counted_only_while_there_is_no_progress() -> None:
    job = Job(config(max_restarts=2))
    job.run()
    for version in range(10):
        job.exit(0, signal=9)
        job.stop_all({snapshot(version): WHOLE})
    for _ in range(2):
        assert job.coordinator.phase is Phase.RUNNING
        job.exit(0, signal=9)
        job.stop_all({snapshot(9): WHOLE})
    assert job.coordinator.exit_code == EXIT_NO_PROGRESS
    assert "3 faults in a row without progress (--max-restarts 2)" in job.coordinator.exit_message


def test_a_store_that_never_starts_counts_as_faults_without_progress() -> None:
    job = Job(config(max_restarts=2))
    job.gather()
    for _ in range(3):
        for node in job.members():
            job.stopped(node, port=None)
    job.stop_all()
    assert job.coordinator.exit_code == EXIT_NO_PROGRESS
    assert "its store did not start" in job.coordinator.exit_message


def test_too_little_shared_memory_ends_the_job_with_both_figures(job: Job) -> None:
    job.tell(ArenaShort("node-1", 1, 300 * 2**20, 64 * 2**20))
    assert job.coordinator.exit_code == EXIT_USAGE
    assert "need 300 MiB, 64 MiB are free" in job.coordinator.exit_message


# ---- the end


def test_the_job_is_done_when_all_ranks_are(job: Job) -> None:
    for rank in range(3):
        assert not job.to("node-0", Shutdown)
        job.exit(rank, code=0, finished=True)
    for node in list(job.coordinator.nodes):
        assert job.end is None
        job.leave(node)
    assert job.end == EndJob(0, "training finished")


def test_ctrl_c_asks_everybody_and_waits_for_them(job: Job) -> None:
    job.tell(StopJob("stopped by SIGINT", 130))
    assert {node for node, m in job.sent if isinstance(m, Shutdown)} == {f"node-{n}" for n in range(4)}
    job.tell(Tick(), after=job.coordinator.next_deadline() - job.now)  # type: ignore[operator]
    assert job.end == EndJob(130, "stopped by SIGINT")
    assert set(job.reaped) == {f"node-{n}" for n in range(4)}


def test_ctrl_c_before_any_node_has_come_ends_at_once() -> None:
    job = Job()
    job.tell(StopJob("stopped by SIGINT", 130))
    assert job.end == EndJob(130, "stopped by SIGINT")
    assert job.reaped == job.started


def test_the_last_worker_finishes_while_another_fails(job: Job) -> None:
    job.exit(0, code=0, finished=True)
    late = job.exit_of(1, code=0, finished=True)
    job.exit(2, signal=9)
    job.tell(late)
    job.stop_all(BOTH)
    assert len(job.forms()) == 3  # All begin again: those that had finished find that nothing is left to do.
    for rank in range(3):
        job.exit(rank, code=0, finished=True)
    assert job.coordinator.exit_code == 0
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.incidents[-1].closed


def test_a_node_whose_ranks_have_finished_is_not_missed(job: Job) -> None:
    job.exit(1, code=0, finished=True)
    job.lose("node-1")
    assert job.coordinator.phase is Phase.RUNNING
    job.exit(0, code=0, finished=True)
    job.exit(2, code=0, finished=True)
    assert job.coordinator.exit_message == "training finished"


def test_a_crash_after_the_training_function_returned_is_no_fault(job: Job) -> None:
    job.exit(0, signal=11, finished=True)
    assert job.coordinator.ranks[0].finished


# ---- messages at the wrong moment


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


# ---- the controller restarts


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


# ---- real hosts


@pytest.fixture
def hosts() -> Job:
    """Three hosts and a spare, that run."""
    job = Job(config(hosts=True))
    for number in range(4):
        job.come(f"h{number}")
    job.stop_all()
    job.step_all()
    job.sent.clear()
    return job


def test_hosts_are_not_asked_for_but_numbered_as_they_come() -> None:
    job = Job(config(hosts=True))
    assert job.started == []
    assert [job.come(f"h{number}") for number in range(4)] == ["node-0", "node-1", "node-2", "node-3"]
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.nodes["node-3"].state is NodeState.IDLE
    assert job.news[0] == "node-0 is h0 (node-0); 2 to come"


def test_a_host_that_did_not_hear_the_answer_gets_the_same_one() -> None:
    job = Job(config(hosts=True))
    for _ in range(2):
        job.tell(HostCame("mark", "h0"))
    assert job.started == ["node-0", "node-0"]


def test_a_host_gets_the_position_that_it_is_meant_for() -> None:
    job = Job(config(hosts=True))
    for launcher, position in (("a", 2), ("b", None), ("c", 0)):
        job.come(launcher, position=position)
    assert job.members() == ["node-2", "node-1", "node-0"]


def test_hosts_are_waited_for_but_not_for_ever() -> None:
    job = Job(config(hosts=True))
    job.come("h0")
    deadline = job.coordinator.next_deadline()
    assert deadline is not None
    assert deadline > job.now + 200
    job.tell(Tick(), after=deadline - job.now)
    job.leave("node-0")
    assert job.end is not None
    assert job.end.exit_code == EXIT_NODES
    assert job.end.message == "2 of 3 hosts did not come within 300 s (--join-timeout-seconds)"


def test_a_fresh_host_takes_the_place_of_a_lost_one(hosts: Job) -> None:
    for node in ("node-1", "node-3"):
        hosts.lose(node)
    assert hosts.started == [f"node-{n}" for n in range(4)]
    assert hosts.news[-1] == "waiting for a host: 1 of 3 are missing"
    assert hosts.come("fresh") == "node-4"
    hosts.stop_all(BOTH)
    assert hosts.forms()["node-4"].position == 1


def test_a_host_whose_node_is_gone_offers_itself_again(hosts: Job) -> None:
    """Its launcher may be quicker to say that it has room than to say why."""
    hosts.tell(HostCame("h1", "h1"))
    assert hosts.coordinator.nodes["node-1"].state is NodeState.LOST
    assert hosts.started[-1] == "node-4"
    assert hosts.members() == ["node-0", "node-3", "node-2"]


def test_waiting_for_a_host_survives_a_controller(hosts: Job) -> None:
    for node in ("node-1", "node-3"):
        hosts.lose(node)
    assert state_of(hosts.replayed()) == state_of(hosts.coordinator)
    assert hosts.replayed().next_deadline() == hosts.coordinator.next_deadline()


# ---- failure domains


def labelled(*domains: str, parity: int = 1, nodes: int = 4) -> Job:
    job = Job(config(hosts=True, nodes=nodes, parity=parity))
    for number, domain in enumerate(domains):
        job.come(f"h{number}", domain)
    job.stop_all()
    return job


def test_groups_are_chosen_once_and_outlive_the_nodes() -> None:
    job = labelled("a", "a", "b", "b", "c")
    grouping = job.coordinator.groups
    assert all(len({"aabb"[p] for p in group}) == len(group) for group in grouping)
    assert {m.groups for m in job.forms().values()} == {grouping}
    job.step_all()
    job.lose("node-0")
    job.stop_all(BOTH)
    assert job.coordinator.formed == 2
    assert {m.groups for m in job.forms().values()} == {grouping}
    assert job.replayed().groups == grouping


def test_labels_that_cannot_protect_end_the_job_at_its_start() -> None:
    job = labelled("a", "a", "a", "b")
    assert job.coordinator.exit_code == EXIT_USAGE
    assert "domain" in job.coordinator.exit_message
    assert not job.forms()


def test_the_spare_of_another_failure_domain_is_preferred() -> None:
    job = labelled("a", "b", "c", "d", "b", "e")
    job.step_all()
    job.lose("node-0")
    assert job.members()[0] == "node-5"


def test_a_spare_of_the_same_failure_domain_is_better_than_none() -> None:
    job = labelled("a", "b", "c", "d", "b")
    job.step_all()
    job.lose("node-0")
    assert job.members()[0] == "node-4"
