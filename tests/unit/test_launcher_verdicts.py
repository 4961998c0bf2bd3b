"""What the coordinator makes of verdicts: of faults, and of what stays slow."""

from __future__ import annotations

import pytest
from unit.coordinator_job import Job, raised
from unit.diagnosed_job import SAFE, again, last, move, running_job, say, started

from ftrain_launcher.control import views
from ftrain_launcher.control.story import tell
from ftrain_launcher.detect.verdict import Kind, Link
from ftrain_launcher.job.complaints import GAP_SECONDS, STAYS_SECONDS
from ftrain_launcher.job.events import Detect, QuickAgain
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_PROGRAM
from ftrain_launcher.to_agent import Stop

job = pytest.fixture(running_job)


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


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("hangs", [False, True])
def test_who_has_ended_without_an_error_does_not_hang_and_the_second_time_is_the_program(
    job: Job, late: bool, finished: bool, hangs: bool
) -> None:
    """Others break off, or the detector says that they wait for it, perhaps before the word of its end is here."""
    lost = raised("RuntimeError: gloo", communication=True)
    for _ in range(2):
        said = [lambda: job.exit(1, code=0, step=5, finished=finished)]
        said.append((lambda: say(job, Kind.HANG, 1)) if hangs else (lambda: job.exit(0, failure=lost)))
        for one in reversed(said) if late else said:
            one()
        again(job) if job.coordinator.phase is Phase.STOPPING else None
    assert last(job).cause is not None
    assert last(job).cause.reason == "rank 1 on node-1 exited with code 0 after step 5, before the others"
    assert job.coordinator.exit_code == EXIT_PROGRAM


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
