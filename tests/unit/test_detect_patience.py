"""Who is called hung where he was before is given more time, and what then ends by itself is no fault from then on."""

from __future__ import annotations

import pytest
from unit.coordinator_job import Job, config, snapshot

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.patience import (
    CALLS_MIN,
    DOUBLINGS_MAX,
    GIVEN_SECONDS_MAX,
    Call,
    Patience,
    WentOn,
    waiting_in,
)
from ftrain_launcher.detect.records import (
    Collectives,
    Communicator,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.job.causes import Blame
from ftrain_launcher.job.events import Diagnosed
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.policy import EXIT_NO_PROGRESS

STEP, USUAL = 49, 0.7
WAITING = (int(Op.ALL_REDUCE), 4)
OTHER = (int(Op.ALL_GATHER), 4)


def called(incident: int, step: int = STEP, allowed: float = USUAL) -> Call:
    return Call(incident, step, allowed)


def given(patience: Patience, rank: int = 3, step: int = STEP, usual: float = USUAL) -> float:
    return patience.allowed_seconds(rank, step, WAITING, usual)


def went_on(generation: int, step: int = STEP, seconds: float = 0.9, rank: int = 3, *, first: bool = False) -> WentOn:
    return WentOn(generation, rank, step, seconds, (WAITING,), first)


def test_who_is_called_again_without_having_come_further_is_given_twice_the_time() -> None:
    patience, shown = Patience(), []
    for incident in range(4):
        shown.append(given(patience))
        patience.called((3,), called(incident))
    assert shown == pytest.approx([0.7, 1.4, 2.8, 5.6])
    assert given(patience, step=STEP - 9) == pytest.approx(11.2), "it has yet to come there"
    assert given(patience, step=STEP + 1) == USUAL, "it has come further"
    assert given(patience, rank=2) == USUAL


def test_faults_with_progress_between_them_have_the_usual_time_each() -> None:
    patience = Patience()
    for incident, step in enumerate((20, 40, 60)):
        assert given(patience, step=step) == USUAL
        patience.called((3,), called(incident, step))
        patience.begin(step)
    assert given(patience, step=-1) == 2 * USUAL, "in a generation's first step, after the snapshot of step 60"


def test_what_is_given_has_a_bound() -> None:
    patience = Patience()
    for incident in range(30):
        patience.called((3,), called(incident))
    assert given(patience) == pytest.approx(USUAL * 2**DOUBLINGS_MAX)
    assert given(patience, usual=60.0) == GIVEN_SECONDS_MAX
    assert given(patience, usual=900.0) == 900.0
    limited = Patience(collective_timeout_seconds=5.0)
    for incident in range(9):
        limited.called((3,), called(incident))
    assert given(limited) == 5.0


def test_who_hangs_whatever_it_is_given_is_told_in_the_end() -> None:
    for usual in (USUAL, 3.2, 60.0, 600.0):
        patience, calls = Patience(), 0
        while True:
            call = called(calls, allowed=given(patience, usual=usual))
            calls += 1
            if times := patience.times_used_up((3,), call):
                break
            patience.called((3,), call)
        assert times == calls
        assert CALLS_MIN <= calls <= DOUBLINGS_MAX + 1


def test_how_long_no_fault_took_is_remembered_for_the_rank_and_where_it_was_waited_for() -> None:
    patience = Patience()
    patience.called((3,), called(1))
    assert patience.went_on(went_on(2)) == [called(1)]
    assert given(patience, step=500) == pytest.approx(1.8), "also where it comes later"
    assert given(patience, rank=2, step=500) == USUAL
    assert patience.allowed_seconds(3, 500, OTHER, USUAL) == USUAL
    assert not patience.gives_more(3, STEP)
    patience.called((3,), called(2, 500))
    assert given(patience, step=500) == pytest.approx(3.6), "what hangs for longer is called, and given more in turn"


def test_in_a_pipeline_it_is_chance_whether_a_stage_is_waited_for_to_send_or_to_receive() -> None:
    assert waiting_in(Op.SEND, 4) == waiting_in(Op.RECEIVE, 4) != waiting_in(Op.SEND, 8)
    assert waiting_in(Op.ALL_REDUCE, 4) != waiting_in(Op.ALL_GATHER, 4)


def test_what_two_ranks_do_in_turn_all_may() -> None:
    patience = Patience()
    for rank in (3, 1):
        assert given(patience, rank=0) == USUAL
        patience.called((rank,), called(rank))
        patience.went_on(went_on(2, rank=rank))
    assert given(patience, rank=0) == pytest.approx(1.8)


def test_a_first_step_proves_it_only_when_it_was_seen_in_two_generations() -> None:
    """A process that is new reads its state and compiles while those that were kept wait for it."""
    patience = Patience()
    patience.called((3,), called(1, 49))
    assert patience.went_on(went_on(2, 49, first=True)) is None
    assert patience.went_on(went_on(2, 49, first=True)) is None, "of one generation"
    assert given(patience, step=100) == USUAL
    patience.called((3,), called(2, 99))
    assert patience.went_on(went_on(3, 99, 0.8, first=True)) == [called(1, 49), called(2, 99)]
    assert given(patience, step=500) == pytest.approx(1.8)


# ---- the detector

WORLD = Communicator("world", (0, 1, 2, 3))


class Watched:
    """One generation: three ranks wait for rank 3, which has stood still for as long as is said."""

    def __init__(self, patience: Patience, step: int = STEP, usual: float | None = 0.02) -> None:
        self.detector = Detector(2, {rank: "node-0" for rank in range(4)}, patience=patience)
        self.step, self.usual, self.now = step, usual, 100.0

    def report(self, stands: float, letter: str = "S") -> list[Verdict]:
        """A report in which it has, or has gone on; what is found."""
        self.now += 0.4
        late = Operation(7, Op.ALL_REDUCE, 400, 6, 100, -1, stands + 0.1, 0.01, self.usual)
        there = Operation(8, Op.ALL_REDUCE, 400, 6, 100, -1, stands, 0.01, self.usual)
        records = [self._rank(n, Collectives(0, 8, 7, (there,), there), "S", stands) for n in range(3)]
        records.append(self._rank(3, Collectives(0, 7, 7, (), late), letter, stands + 0.05))
        return self._take(*records)

    def go_on(self) -> list[Verdict]:
        """It came 0.2 s after the last report, 0.2 s before this one."""
        self.now += 0.4
        done = Operation(8, Op.ALL_REDUCE, 400, 6, 100, -1, 0.2, 0.01, self.usual)
        return self._take(*(self._rank(n, Collectives(0, 8, 8, (), done), "S", 0.2) for n in range(4)))

    def _rank(self, number: int, place: Collectives, letter: str, idle: float) -> RankRecord:
        process = ProcessState(letter, 1.0, letter)
        return RankRecord(number, self.step, idle + 0.1, (place,), process=process, idle_seconds=idle)

    def _take(self, *records: RankRecord) -> list[Verdict]:
        self.detector.take(NodeReport(node="a", generation=2, communicators=(WORLD,), ranks=records), self.now)
        return self.detector.verdicts(self.now)


def tried(step: int = STEP) -> Patience:
    patience = Patience()
    patience.called((3,), Call(1, step, USUAL))
    return patience


def test_a_first_verdict_says_what_the_next_one_needs() -> None:
    (verdict,) = Watched(Patience()).report(1.0)
    assert verdict.ranks == (3,)
    assert verdict.allowed_seconds == pytest.approx(USUAL)
    assert "given" not in verdict.sentence


def test_where_it_was_called_it_is_called_again_after_twice_the_time_and_that_is_said() -> None:
    watched = Watched(tried())
    assert watched.report(1.0) == []
    (verdict,) = watched.report(1.5)
    assert verdict.allowed_seconds == pytest.approx(2 * USUAL)
    assert verdict.sentence.endswith("; it was given 1.4 s, since it might have been slow only")


def test_who_is_stopped_or_elsewhere_has_no_more_time() -> None:
    watched = Watched(tried())
    assert watched.report(0.2, "T") == []
    (verdict,) = watched.report(0.6, "T")
    assert verdict.allowed_seconds == 0.0, "and none is given for it"
    assert [v.ranks for v in Watched(tried(), step=STEP + 1).report(1.0)] == [(3,)]


@pytest.mark.parametrize("usual", [0.02, None])
def test_that_it_went_on_by_itself_is_told_with_how_long_it_took(usual: float | None) -> None:
    """Also in a new generation, which has no history, where nobody is called for a minute."""
    watched = Watched(tried(), usual=usual)
    assert watched.report(0.3) == watched.report(0.7) == watched.go_on() == []
    (ended,) = watched.detector.went_on()
    assert (ended.rank, ended.step, ended.in_first_step) == (3, STEP, False)
    assert ended.seconds == pytest.approx(0.95)
    assert watched.detector.went_on() == []


def test_who_was_called_may_go_on_before_anything_follows() -> None:
    watched = Watched(Patience())
    (verdict,) = watched.report(0.8)
    assert not watched.detector.has_passed(verdict)
    watched.report(1.2)
    assert not watched.detector.has_passed(verdict)
    assert watched.detector.went_on() == []
    watched.go_on()
    assert watched.detector.has_passed(verdict)
    (ended,) = watched.detector.went_on()
    assert ended.seconds == pytest.approx(1.45)


def test_a_stall_on_the_way_to_where_it_was_called_is_told_once() -> None:
    """A script that reads checkpoints of its own counts its steps from nought: nobody can tell where it was called."""
    patience = tried(step=STEP + 9)
    for told in (1, 0):
        watched = Watched(patience)
        watched.report(0.7)
        watched.go_on()
        ended = watched.detector.went_on()
        assert len(ended) == told
        for one in ended:
            assert patience.went_on(one) == [], "what was called is not cleared by it"
            assert given(patience) == pytest.approx(4 * 0.95)


def test_a_shorter_stall_a_stall_beyond_and_one_that_all_had_prove_nothing() -> None:
    for watched, stands in (Watched(tried()), 0.3), (Watched(tried(step=STEP - 1)), 0.6), (Watched(Patience()), 0.6):
        watched.report(stands)
        watched.go_on()
        assert watched.detector.went_on() == []


# ---- the job


def hung(job: Job, seconds: float = USUAL, step: int = STEP, rank: int = 1) -> None:
    """The detector names a rank; all stop, and go on after the snapshot of that step."""
    verdict = Verdict(
        kind=Kind.HANG,
        generation=job.coordinator.formed,
        ranks=(rank,),
        confidence=0.9,
        sentence=f"rank {rank} hangs",
        step=step,
        allowed_seconds=seconds,
    )
    job.tell(Diagnosed(verdict))
    for _ in range(2):  # who is given a position meanwhile has to stop, too
        if job.coordinator.phase is Phase.STOPPING:
            job.stop_all({snapshot(step): (True, True)})
    if job.coordinator.phase is Phase.RUNNING:
        job.step_all(step + 1)


def started() -> Job:
    job = Job(config(max_restarts=100))
    job.run()
    return job


def test_the_incident_says_that_more_time_is_given_and_in_the_end_that_it_was_no_fault() -> None:
    job = started()
    hung(job)
    assert given(job.coordinator.patience, rank=1) == pytest.approx(1.4)
    (incident,) = job.coordinator.incidents
    assert incident.decision.endswith("if it comes to that there again, 1.4 s are allowed: it may only be slow")
    assert job.coordinator.quarantine.strikes(job.now)["node-1"][0].blame is Blame.HUNG
    job.tell(went_on(job.coordinator.formed, rank=1))
    assert job.news[-1] == (
        "incident 1: rank 1 kept others waiting for 0.9 s and went on by itself: "
        "so long a wait for it is no fault in this job from now on"
    )
    assert incident.over == "rank 1 went on by itself, after 0.9 s: it was no fault"
    assert job.coordinator.quarantine.strikes(job.now) == {}, "its node is not to be taken out for it"


def test_who_goes_on_while_the_job_is_stopped_for_it_is_acquitted_at_once() -> None:
    """A stall that ends soon after it is called."""
    job = started()
    verdict = Verdict(
        kind=Kind.HANG,
        generation=1,
        ranks=(1,),
        confidence=0.9,
        sentence="rank 1 hangs",
        step=STEP,
        allowed_seconds=USUAL,
    )
    job.tell(Diagnosed(verdict))
    assert job.coordinator.phase is Phase.STOPPING
    job.tell(went_on(1, rank=1))
    assert job.news[-1].startswith("incident 1: rank 1 kept others waiting for 0.9 s")
    job.stop_all({snapshot(STEP): (True, True)})
    job.step_all(STEP + 1)
    assert given(job.coordinator.patience, rank=1) == pytest.approx(1.8), "not twice what is known, too"
    assert job.coordinator.quarantine.strikes(job.now) == {}
    assert "may only be slow" not in job.coordinator.incidents[0].decision


def test_a_controller_that_is_started_again_knows_who_was_given_more_time() -> None:
    job = started()
    hung(job)
    hung(job, step=STEP + 20, rank=2)
    job.tell(went_on(job.coordinator.formed, rank=1))
    patience = job.replayed().patience
    assert given(patience, rank=1, step=500) == pytest.approx(1.8)
    assert given(patience, rank=2, step=STEP + 20) == pytest.approx(1.4)


def test_a_job_that_hangs_at_one_place_whatever_is_given_ends() -> None:
    job = started()
    for _ in range(DOUBLINGS_MAX + 1):
        assert job.coordinator.phase is Phase.RUNNING
        hung(job, given(job.coordinator.patience, rank=1))
    assert job.coordinator.exit_code == EXIT_NO_PROGRESS
    assert job.coordinator.exit_message == (
        "called hung 9 times at one place, with more time each time; the last: rank 1 hangs"
    )


def test_what_was_no_fault_does_not_count_towards_the_end() -> None:
    job = Job(config(max_restarts=3))
    job.run()
    for step in range(0, 200, 20):
        hung(job, step=5 if step < 60 else step)
        assert job.coordinator.phase is Phase.RUNNING
        job.tell(went_on(job.coordinator.formed, 5 if step < 60 else step, rank=1))
