"""What the coordinator makes of verdicts, and of nodes that are to be given no ranks."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from simulation.checkers import state_of
from unit.coordinator_job import DATA, WHOLE, Job, config, raised, snapshot

from ftrain_launcher.control import views
from ftrain_launcher.control.journal import decode
from ftrain_launcher.control.story import tell
from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_launcher.job.complaints import GAP_SECONDS, STAYS_SECONDS
from ftrain_launcher.job.events import (
    CheckNodes,
    CordonNode,
    Detect,
    Diagnosed,
    HostCame,
    JobConfig,
    Leave,
    NodeChecked,
    Progress,
    QuickAgain,
    Tick,
    UncordonNode,
)
from ftrain_launcher.job.halting import HOLD_SECONDS
from ftrain_launcher.job.incidents import Incident
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.job.policy import EXIT_PROGRAM
from ftrain_launcher.messages import Stop

BOTH = {snapshot(4): WHOLE, snapshot(5, slot=1): DATA}
"""What each node holds when step 4 is protected and step 5 is sealed."""
SAFE = {snapshot(4): WHOLE}


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    job.run()
    yield job
    assert state_of(job.replayed()) == state_of(job.coordinator)


def started(**options: object) -> Job:
    job = Job(msgspec.structs.replace(config(), **options))
    job.run()
    return job


def say(job: Job, kind: Kind = Kind.HANG, *ranks: int, after: float = 0.01, **more: object) -> None:
    """The detector has found something in the generation that runs."""
    fields = {"generation": job.coordinator.formed, "confidence": 0.9, "sentence": f"ranks {ranks}: {kind}", "step": 5}
    job.tell(Diagnosed(Verdict(kind=kind, ranks=ranks, **(fields | more))), after)


def again(job: Job, held: dict = SAFE) -> None:
    """All stop, and train again; who is given a position meanwhile has to stop, too."""
    for _ in range(2):
        if job.coordinator.phase is Phase.STOPPING:
            job.stop_all(held)
    job.step_all()


def protect(job: Job, version: int, sealed: int | None = None) -> None:
    job.tell(Progress(job.coordinator.formed, version if sealed is None else sealed, version))


def move(job: Job, version: int) -> None:
    """The ranks are halted, and given to another node."""
    job.halt(version)
    again(job, {snapshot(version): WHOLE})


def second_host_taken_out() -> tuple[Job, list[str]]:
    """A job over two of three hosts that trains on after its second was at fault; the nodes' names."""
    job = Job(config(nodes=2, spares=1, hosts=True))
    names = [job.come(f"host-{n}") for n in range(3)]
    job.stop_all()
    job.step_all()
    say(job, Kind.COMMUNICATION_HANG, nodes=(names[1],))
    again(job)
    return job, names


def last(job: Job) -> Incident:
    return job.coordinator.incidents[-1]


def cordon(job: Job, node: str, leave: Leave = Leave.AT_NEXT_FAULT) -> None:
    job.tell(CordonNode(node, "its fan is loud", leave))


# ---- verdicts


def test_a_hang_restarts_all_ranks_on_the_same_nodes(job: Job) -> None:
    say(job, Kind.HANG, 1)
    assert {node for node, m in job.sent if isinstance(m, Stop)} == {"node-0", "node-1", "node-2"}
    again(job)
    incident = last(job)
    assert incident.cause is not None
    assert [(s.node, s.rank) for s in incident.cause.suspects] == [("node-1", 1)]
    assert (incident.cause.kind, incident.closed, incident.steps_lost) == ("hang", True, 0)
    assert [v.sentence for v in incident.verdicts] == ["ranks (1,): hang"]
    assert incident.timeline.named == incident.timeline.detected
    assert incident.decision == "all ranks restart on the same nodes"
    assert job.members() == ["node-0", "node-1", "node-2"]


@pytest.mark.parametrize("more", [{"confidence": 0.4}, {"generation": 0}, {"generation": 7}])
def test_a_guess_and_what_is_about_another_generation_change_nothing(job: Job, more: dict) -> None:
    say(job, Kind.HANG, 1, **more)
    assert job.coordinator.phase is Phase.RUNNING
    assert not job.coordinator.incidents


def test_a_mismatch_explains_the_error_that_came_before_it(job: Job) -> None:
    job.exit(2, failure=raised("RuntimeError: gloo", communication=True))
    job.stopped("node-0", SAFE)
    say(job, Kind.MISMATCH, 0, 1)
    again(job)
    assert last(job).cause is not None
    assert last(job).cause.kind == "mismatch"
    assert len(job.coordinator.incidents) == 1


@pytest.mark.parametrize("late", [False, True])
def test_the_same_mismatch_twice_ends_the_job_even_if_it_is_understood_late(job: Job, late: bool) -> None:
    for _ in range(2):
        failed = job.coordinator.formed
        job.exit(2, failure=raised("RuntimeError: gloo", communication=True))
        if not late:
            say(job, Kind.MISMATCH, 0)
        again(job) if job.coordinator.phase is Phase.STOPPING else None
        if late:
            say(job, Kind.MISMATCH, 0, generation=failed)
    assert job.coordinator.phase is Phase.ENDING
    assert job.coordinator.exit_code == EXIT_PROGRAM
    assert "twice in the same way" in job.coordinator.exit_message


def test_a_dead_worker_explains_a_hang_of_the_same_moment(job: Job) -> None:
    say(job, Kind.HANG, 1)
    job.exit(1, signal=9, step=5)
    again(job)
    assert last(job).cause is not None
    assert last(job).cause.reason == "rank 1 on node-1 was killed by SIGKILL after step 5"
    assert [v.kind for v in last(job).verdicts] == [Kind.HANG]


def test_what_workers_raise_after_the_verdict_is_its_consequence_and_before_it_the_cause(job: Job) -> None:
    say(job, Kind.HANG, 1)
    job.exit(2, failure=raised("ValueError: no batch"))
    again(job)
    job.exit(2, failure=raised("ValueError: no batch"))
    say(job, Kind.HANG, 1)
    again(job)
    causes = [i.cause for i in job.coordinator.incidents]
    assert [c.kind for c in causes if c is not None] == ["hang", "worker_exit"]


def test_a_broken_link_is_told_by_both_its_ends(job: Job) -> None:
    say(job, Kind.COMMUNICATION_HANG, 0, 1, links=(Link(2, 0),))
    again(job)
    assert last(job).cause is not None
    assert last(job).cause.nodes == ("node-2", "node-0")
    assert job.members() == ["node-0", "node-1", "node-2"]


def test_with_detect_warn_people_are_told_and_nothing_else_happens() -> None:
    job = started(detect=Detect.WARN)
    say(job, Kind.HANG, 1)
    say(job, Kind.HANG, 1)
    assert job.coordinator.phase is Phase.RUNNING
    assert job.news[-1] == "ranks (1,): hang; training goes on"
    assert (last(job).closed, last(job).harmless, len(job.coordinator.incidents)) == (True, True, 1)


def test_replicas_that_differ_are_told_by_rank_and_node(job: Job) -> None:
    say(job, Kind.DIVERGENCE, 2)
    assert last(job).cause is not None
    assert [(s.node, s.rank) for s in last(job).cause.suspects] == [("node-2", 2)]
    assert last(job).cause.blame is None
    assert job.coordinator.phase is Phase.RUNNING


# ---- what stays slow


def test_what_goes_on_is_told_once_and_again_after_it_was_gone(job: Job) -> None:
    for _ in range(5):
        say(job, Kind.SLOW, 1, after=30.0)
    say(job, Kind.SLOW, 2)
    assert len(job.coordinator.incidents) == 2
    first = job.coordinator.incidents[0]
    assert len(first.verdicts) == 2
    say(job, Kind.SLOW, 1, after=GAP_SECONDS + 1)
    assert len(job.coordinator.incidents) == 3


def test_with_isolate_slow_a_node_that_stays_slow_gives_its_ranks_away() -> None:
    job = started(isolate_slow=True)
    say(job, Kind.SLOW, 1)
    say(job, Kind.SLOW, 1, after=STAYS_SECONDS / 2)
    assert job.coordinator.nodes["node-1"].cordon is None
    say(job, Kind.SLOW, 1, after=STAYS_SECONDS / 2)
    assert "node-1 is quarantined" in last(job).decision
    move(job, 4)
    assert job.members() == ["node-0", "node-3", "node-2"]


def test_that_a_slow_rank_is_quick_again_is_told_once_and_only_if_it_was_told_to_be_slow(job: Job) -> None:
    job.tell(QuickAgain(job.coordinator.formed, 1, 3))
    assert not job.coordinator.incidents
    say(job, Kind.SLOW, 1)
    for _ in range(2):
        job.tell(QuickAgain(job.coordinator.formed, 1, 60))
    told = "rank 1 on node-1 is as quick as its peers again, at step 60"
    assert last(job).over == told
    assert [text for text in job.news if "quick" in text] == [f"incident 1: {told}"]
    assert told in tell(views.incident(job.coordinator, 1)["incident"])[-1]


def test_one_that_is_slow_again_before_long_is_told_again_and_has_not_stayed_slow() -> None:
    job = started(isolate_slow=True)
    for _ in range(3):
        say(job, Kind.SLOW, 1, after=STAYS_SECONDS / 2)
        job.tell(QuickAgain(job.coordinator.formed, 1, 60))
    say(job, Kind.SLOW, 1)
    assert (len(job.coordinator.incidents), last(job).over) == (1, "")
    assert sum("training goes on" in text for text in job.news) == 4
    assert job.coordinator.nodes["node-1"].cordon is None


# ---- nodes that are taken out


def hang_twice(job: Job) -> None:
    say(job, Kind.HANG, 1)
    again(job)
    say(job, Kind.HANG, 1, step=9)


def test_a_node_that_hangs_again_is_replaced_by_the_spare_and_stays_connected(job: Job) -> None:
    hang_twice(job)
    again(job)
    assert job.members() == ["node-0", "node-3", "node-2"]
    node = job.coordinator.nodes["node-1"]
    assert (node.state, node.position, node.connection is not None) == (NodeState.CORDONED, None, True)
    assert node.cordon is not None
    assert node.cordon.quarantined
    assert last(job).decision == (
        "node-1 is quarantined: hung 2 times within an hour, at different steps; node-3 takes over from node-1"
    )
    assert "node-1" not in job.reaped
    assert job.started[-1] == "node-4"  # a new spare


def test_if_nobody_can_take_over_it_keeps_its_ranks_until_somebody_can() -> None:
    job = started(spares=0)
    hang_twice(job)
    again(job)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert "it keeps its ranks until another node is there" in last(job).decision
    assert job.started[-1] == "node-3"
    job.join("node-3")
    assert job.coordinator.phase is Phase.RUNNING
    move(job, 7)
    assert job.members() == ["node-0", "node-3", "node-2"]


def test_it_keeps_its_ranks_where_its_bytes_are_needed(job: Job) -> None:
    """A worker was killed: what is sealed is on its own nodes alone, and no sealed step may be lost for this."""
    hang_twice(job)
    job.stop_all(BOTH)
    assert job.members() == ["node-0", "node-1", "node-2"]
    assert job.coordinator.restore == snapshot(5, slot=1)


def test_the_policy_takes_out_only_so_many_nodes_within_an_hour() -> None:
    job = started(nodes=3, spares=1)
    for n in range(3):
        for step in (2 * n, 2 * n + 1):
            rank = job.members().index(sorted(job.members())[0])
            say(job, Kind.HANG, rank, step=step)
            again(job)
            if job.started[-1] not in [name for name, node in job.coordinator.nodes.items() if node.connection]:
                job.join(job.started[-1])
    assert job.coordinator.phase is Phase.RUNNING
    out = [n for n in job.coordinator.nodes.values() if n.cordon is not None]
    assert len(out) == 2 == job.coordinator.quarantine.isolations(job.now)
    assert "2 nodes were taken out within an hour already" in last(job).decision
    assert job.coordinator.quarantine.isolations(job.now + 3600) == 0


def test_on_hosts_one_that_was_taken_out_comes_back_if_nobody_else_is_there() -> None:
    job, names = second_host_taken_out()
    assert job.members() == [names[0], names[2]]
    job.lose(names[2])
    assert job.members() == [names[0], names[1]]
    assert job.coordinator.nodes[names[1]].cordon is None
    assert f"{names[1]} may hold ranks again: nobody else is there" in job.news


def test_what_an_operator_has_cordoned_as_well_is_not_taken_back() -> None:
    job, names = second_host_taken_out()
    cordon(job, names[1])
    job.lose(names[2])
    assert job.members() == [names[0]]


def test_a_host_that_was_taken_out_does_not_come_back_as_another_node() -> None:
    job, names = second_host_taken_out()
    job.lose(names[1])
    job.tell(HostCame("another launcher", "host-1"))
    new = job.started[-1]
    job.join(new)
    assert job.coordinator.nodes[new].state is NodeState.CORDONED
    assert job.coordinator.nodes[new].cordon == job.coordinator.nodes[names[1]].cordon


def test_a_host_that_is_lost_again_and_again_is_taken_out_whatever_its_node_is_called() -> None:
    job = Job(config(nodes=2, hosts=True))
    job.come("steady")
    new = job.come("flaps")
    job.stop_all()
    job.step_all()
    for _ in range(3):
        job.lose(new)
        new = job.come("flaps")
        again(job)
    assert job.coordinator.nodes[new].cordon is not None
    assert job.coordinator.nodes[new].position == 1
    assert "lost 3 times within an hour, more than any other node" in last(job).decision
    other = job.come("other")
    move(job, 7)
    assert job.members()[1] == other


def test_hosts_of_one_name_are_told_apart_by_their_nodes() -> None:
    job = Job(config(nodes=2, hosts=True))
    for launcher in ("one", "two"):
        job.tell(HostCame(launcher, "localhost"))
        job.join(job.started[-1])
    assert job.coordinator.quarantine.machines() == {"node-0": "node-0", "node-1": "node-1"}


# ---- operators


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


# ---- the journal


def test_a_journal_of_an_older_version_is_still_read() -> None:
    line = (
        b'{"now":1.0,"event":{"type":"job_started","config":{"work":{"job":"j","argv":["t.py"],"folder":"/",'
        b'"log_folder":"/","nproc_per_node":1,"snapshot_every":1,"parity":1,"max_restarts":3},"nodes":2,"spares":1}}}'
    )
    event = decode(line).event
    assert isinstance(event.config, JobConfig)
    assert (event.config.detect, event.config.isolate_slow) == (Detect.ACT, False)


# ---- what people see


def test_nodes_are_shown_with_what_speaks_against_them(job: Job) -> None:
    hang_twice(job)
    again(job)
    shown = views.nodes(job.coordinator, job.now)
    assert shown["isolations"] == {"last_hour": 1, "max": 2}
    out = shown["nodes"][1]
    assert (out["name"], out["state"], out["position"], out["ranks"]) == ("node-1", "cordoned", None, [])
    assert [(f["kind"], f["step"]) for f in out["failures"]] == [("hung", 5), ("hung", 9)]
    assert {key: out["cordon"][key] for key in ("quarantined", "leaves", "returning", "reason")} == {
        "quarantined": True,
        "leaves": False,
        "returning": False,
        "reason": "hung 2 times within an hour, at different steps",
    }
    assert (shown["nodes"][3]["position"], shown["nodes"][3]["ranks"], shown["nodes"][3]["cordon"]) == (1, [1], None)
    later = views.nodes(job.coordinator, job.now + 3601)
    assert later["nodes"][1]["failures"] == []
