"""The detector, given reports made by hand: who is named, who is not, and when nothing may be said."""

from __future__ import annotations

import time

import msgspec
from unit.rank_reports import LONG, PAIR, WORLD, beyond, called, inside, rank, told, waiting

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import Communicator, NodeReport, Op, ProcessState, RankRecord
from ftrain_launcher.detect.timeouts import allowed_seconds
from ftrain_launcher.detect.verdict import WAITS_MAX, Kind, Verdict


def test_the_rank_that_others_wait_for_is_named_and_the_sentence_says_why() -> None:
    (verdict,) = told(*waiting(0, 1, 2), rank(3, beyond(called(7, LONG + 0.1)), letter="R"))
    assert (verdict.kind, verdict.ranks, verdict.confidence, verdict.step) == (Kind.HANG, (3,), 0.9, 10)
    assert verdict.sentence == (
        "rank 3 on node-3 has not entered all_reduce #8 of 'world' (ranks 0-3) for 1.0 s; ranks 0, 1, 2 wait for it; "
        "its process is running"
    )
    assert {(wait.waiter, wait.waited_for) for wait in verdict.waits} == {(0, (3,)), (1, (3,)), (2, (3,))}


def test_a_group_goes_by_its_description() -> None:
    ranks = (*waiting(0, 1, 2), rank(3, beyond(called(7, LONG + 0.1))))
    for communicator, name in (
        (Communicator("5", WORLD.members, "mesh_dp"), "'mesh_dp' (ranks 0-3)"),
        (Communicator("0", WORLD.members, "default_pg"), "the world group"),
    ):
        (verdict,) = told(*ranks, communicators=(communicator, PAIR))
        assert f"has not entered all_reduce #8 of {name} for 1.0 s" in verdict.sentence
        assert {(w.communicator, w.description) for w in verdict.waits} == {
            (communicator.name, communicator.description)
        }


def test_a_chain_of_waits_ends_at_its_sink() -> None:
    middle = rank(2, beyond(called(7, 2.0)), inside(called(5, LONG), 1))
    (verdict,) = told(*waiting(0, 1), middle, rank(3, beyond(called(7, 2.0)), beyond(called(4, LONG + 0.1), 1)))
    assert verdict.ranks == (3,)


def test_what_all_are_in_and_cannot_be_in_together_needs_no_history() -> None:
    """The very first step: people compile in it, so that a rank which is late may be so for a minute."""

    def others(age: float) -> list[RankRecord]:
        return [rank(number, inside(called(1, age, usual_seconds=None)), idle=age) for number in (0, 1, 2)]

    def the_last(age: float, elements: int) -> RankRecord:
        return rank(3, inside(called(1, age, usual_seconds=None, elements=elements)), idle=age)

    (verdict,) = told(*others(1.5), the_last(1.2, 101))
    assert (verdict.kind, verdict.ranks, verdict.confidence) == (Kind.MISMATCH, (3,), 0.95)
    assert told(*others(1.5), the_last(1.2, 100)) == [], "they are in the same one"
    assert told(*others(1.5), the_last(0.8, 101)) == [], "it has just come"
    assert told(*others(1.5)[:2], rank(2, idle=1.5), the_last(1.2, 101)) == [], (
        "who is right may be told when all are in it"
    )


def test_a_stopped_process_needs_no_history_and_only_half_a_second() -> None:
    others = [rank(number, inside(called(1, 0.55, usual_seconds=None)), idle=0.55) for number in (0, 1, 2)]
    assert told(*others, rank(3, idle=0.6)) == []
    (verdict,) = told(*others, rank(3, letter="T", idle=0.6))
    assert (verdict.ranks, verdict.confidence) == ((3,), 0.99)
    assert "its process is stopped (T)" in verdict.sentence


def test_a_process_that_pauses_for_a_moment_is_not_stopped() -> None:
    """A profiler's look at it, or who limits its processor by signals; while others evaluate, or steps are long."""

    def named(*looks: tuple[float, str, float]) -> bool:
        """By each report's moment, the process's letter and its processor time so far."""
        detector = Detector(1, {number: f"node-{number}" for number in range(4)})
        others = [rank(number, inside(called(1, LONG, usual_seconds=None)), idle=LONG) for number in (0, 1, 2)]
        found: list[Verdict] = []
        for now, letter, cpu_seconds in looks:
            late = msgspec.structs.replace(rank(3, idle=LONG), process=ProcessState(letter, cpu_seconds, letter))
            report = NodeReport(node="node", generation=1, communicators=(WORLD,), ranks=(*others, late))
            detector.take(report, now)
            found += detector.verdicts(now)
        return [verdict.ranks for verdict in found] == [(3,)]

    assert not named((0.0, "T", 1.0)), "it may go on at once"
    assert not named((0.0, "T", 1.0), (0.1, "S", 1.0), (0.2, "T", 1.0), (0.4, "T", 1.0)), "it did go on"
    assert not named(*((0.1 * n, "T", 1.0 + 0.03 * n) for n in range(9))), "it goes on between the looks"
    assert not named(*((0.1 * n, "t", 1.0) for n in range(9))), "who is traced is looked at"
    assert named(*((0.1 * n, "T", 1.0) for n in range(5)))


def test_of_ranks_that_are_stopped_together_none_is_named() -> None:
    """A session that is suspended: one after the other, and not all reports of it have come yet."""

    def named(*looks: tuple[float, str]) -> list[tuple[int, ...]]:
        """By report: its moment, and the letters of all ranks; ``-``: none of it."""
        detector = Detector(1, {number: f"node-{number}" for number in range(4)})
        found: list[Verdict] = []
        for now, letters in looks:
            for number, letter in enumerate(letters):
                place = inside(called(8, 0.1 + now)) if number else beyond(called(7, 0.1 + now))
                record = rank(number, place, letter=letter, idle=0.1 + now)
                report = NodeReport(node=f"node-{number}", generation=1, communicators=(WORLD,), ranks=(record,))
                detector.take(report, now) if letter != "-" else None
            found += detector.verdicts(now)
        return [verdict.ranks for verdict in found]

    assert named((0.0, "TTTS"), (0.2, "TTT-"), (0.4, "TTT-"), (0.5, "TTTT"), (1.0, "TTTT")) == []
    assert named((0.0, "TSSS"), (0.2, "T---"), (0.41, "TSSS")) == [(0,)]


def test_where_all_work_for_seconds_in_each_step_history_says_who_is_late() -> None:
    """After five times the 99th percentile and a second at most. A pause that is longer than in other steps is one of
    a checkpoint, say, which takes each rank its own time."""

    def named(waited: float, gap: float, usual_gap: float | None, usual: float = 0.02) -> bool:
        waits = called(8, waited, gap_seconds=gap, usual_gap_seconds=usual_gap, usual_seconds=usual)
        others = [rank(number, inside(waits), idle=waited) for number in (0, 1, 2)]
        return bool(told(*others, rank(3, beyond(called(7, gap + waited)), idle=gap + waited)))

    assert named(0.75, 10.0, 10.0)
    assert not named(2.0, 10.0, None), "what is usual is not known"
    assert not named(2.0, 10.0, 0.05), "all save a checkpoint"
    assert not named(2.0, 10.0, 7.0)
    assert named(2.0, 10.0, 9.5)
    assert not named(2.0, 10.0, 10.0, usual=0.3), "they usually wait for that long"
    assert named(2.4, 10.0, 10.0, usual=0.3)


def test_who_compiles_for_longer_than_others_that_compiled_is_not_late() -> None:
    """In the middle of training, one rank after the other: 0, 2.7, 5.3 and 8 s."""

    def named(waited: float) -> bool:
        others = [(waited, 0.03), (waited - 2.7, 2.7), (waited - 5.3, 5.3)]
        waiters = [rank(n, inside(called(8, age, gap_seconds=gap)), idle=age) for n, (age, gap) in enumerate(others)]
        return bool(told(*waiters, rank(3, beyond(called(7, waited + 0.03)), idle=waited + 0.03)))

    assert not named(7.9)
    assert named(9.0)


def test_who_came_late_is_as_late_for_the_next_operation_of_the_step() -> None:
    """Seen in a step of seconds: the others have entered all buckets, and it computes what is between two of them."""
    waits = called(8, 2.3, gap_seconds=0.0, usual_gap_seconds=0.8)
    others = [rank(number, inside(waits), idle=2.3) for number in (0, 1, 2)]
    assert told(*others, rank(3, beyond(called(7, 0.75)), idle=0.75)) == []
    (verdict,) = told(*others, rank(3, beyond(called(7, 1.6)), idle=1.6))
    assert verdict.ranks == (3,)


def test_a_rank_that_was_stopped_within_an_operation_explains_that_none_leaves_it() -> None:
    (verdict,) = told(*waiting(0, 1, 2), rank(3, inside(called(8, LONG)), letter="T"))
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (3,))
    assert "has been inside all_reduce #8" in verdict.sentence


def test_a_rank_that_was_stopped_in_what_the_others_have_left_already_is_named() -> None:
    """Stopped right after its end, before it could be noted; nobody has come to the next operation yet."""
    others = [rank(number, beyond(called(8, LONG))) for number in (0, 1, 2)]
    (verdict,) = told(*others, rank(3, inside(called(8, LONG)), letter="T"))
    assert (verdict.kind, verdict.ranks, verdict.confidence) == (Kind.HANG, (3,), 0.99)
    assert "the others have left it; its process is stopped (T)" in verdict.sentence


def test_who_waits_for_a_processor_is_not_late_before_it_has_had_its_time() -> None:
    late = rank(3, beyond(called(7, LONG + 0.1)), letter="R")
    assert told(*waiting(0, 1, 2), msgspec.structs.replace(late, starved_seconds=LONG - 0.2)) == []
    (verdict,) = told(*waiting(0, 1, 2), msgspec.structs.replace(late, starved_seconds=0.2))
    assert verdict.ranks == (3,)


def test_since_its_report_it_is_taken_to_be_starved_as_it_was_before() -> None:
    """Others' newer reports tell that it has not come, and not why. Seen on a crowded machine: stages that computed."""
    for letter, starved, named in (("S", 0.3, True), ("S", 0.5, False), ("R", 0.3, True), ("R", 0.5, False)):
        detector = Detector(1, {number: f"node-{number}" for number in range(4)})
        late = rank(3, beyond(called(7, 0.8)), letter=letter, idle=0.8)
        late = msgspec.structs.replace(late, starved_seconds=starved)
        for record, now in ((late, 100.0), *((other, 100.45) for other in waiting(0, 1, 2))):
            detector.take(
                NodeReport(node=f"node-{record.rank}", generation=1, communicators=(WORLD,), ranks=(record,)), now
            )
        assert bool(detector.verdicts(100.45)) == named, (letter, starved)


def test_what_is_allowed_comes_from_history() -> None:
    assert allowed_seconds(called(1, 0.0, usual_seconds=0.02)) == 0.7
    assert allowed_seconds(called(1, 0.0, usual_seconds=1.0)) == 3.2
    assert allowed_seconds(called(1, 0.0, usual_seconds=None)) == 60.0
    assert allowed_seconds(called(1, 0.0, Op.BARRIER)) == 60.0
    late = rank(3, beyond(called(7, LONG + 0.1)))
    assert told(*waiting(0, 1, 2, usual_seconds=0.5), late) == []
    assert told(*waiting(0, 1, 2, usual_seconds=None), late) == []
    assert told(*waiting(0, 1, 2, op=Op.BARRIER), late) == []


def test_nobody_is_late_who_was_outside_as_long_as_the_others() -> None:
    assert told(*waiting(0, 1, 2, gap_seconds=20.0), rank(3, beyond(called(7, 21.5)), idle=21.5)) == []
    assert told(*waiting(0, 1, 2, gap_seconds=20.0), rank(3, beyond(called(7, 45.0)), idle=45.0)) != []


def test_where_most_stall_the_one_that_does_not_is_early() -> None:
    stalled = [rank(number, beyond(called(7, 5.0)), idle=5.0) for number in (1, 2, 3)]
    assert told(rank(0, inside(called(8, 4.5))), *stalled) == []


def test_a_rank_that_moves_elsewhere_is_not_hung() -> None:
    assert told(*waiting(0, 1, 2), rank(3, beyond(called(7, 3.0)), beyond(called(90, 0.1), 1), idle=0.1)) == []


def test_that_a_rank_has_not_come_is_known_until_others_were_last_seen_to_wait() -> None:
    """And not until now: it may have come, and the report of that is on its way. Seen on a crowded machine."""
    detector = Detector(1, {number: f"node-{number // 2}" for number in range(4)})

    def report(node: int, now: float, *records: RankRecord) -> list[Verdict]:
        one = NodeReport(node=f"node-{node}", generation=1, communicators=(WORLD, PAIR), ranks=records)
        detector.take(one, now)
        return detector.verdicts(now)

    def waits(number: int, age: float) -> RankRecord:
        return rank(number, inside(called(8, age)), idle=age)

    assert report(1, 100.0, waits(2, 0.5), rank(3, beyond(called(7, 0.6)), idle=0.6)) == []
    assert detector.verdicts(100.45) == []
    (verdict,) = report(0, 100.46, waits(0, 0.96), waits(1, 0.96))
    assert verdict.ranks == (3,)


def test_two_ranks_that_hang_are_both_named() -> None:
    late = [rank(number, beyond(called(7, LONG + 0.1))) for number in (2, 3)]
    (verdict,) = told(*waiting(0, 1), *late)
    assert (verdict.ranks, verdict.confidence) == ((2, 3), 0.8)
    assert verdict.sentence == (
        "ranks 2 on node-2, 3 on node-3 have not entered all_reduce #8 of 'world' (ranks 0-3) for 1.0 s; "
        "ranks 0, 1 wait for them; of rank 2: its process sleeps"
    )


def test_of_two_that_hang_in_groups_of_their_own_each_is_said_to_lack_only_where_it_does() -> None:
    """Both ranks of a replica read a bad batch, and each keeps the other replica's rank waiting."""
    rows = (Communicator("dp", (0, 2), "mesh_dp"), Communicator("dp", (1, 3), "mesh_dp"))

    def replicas(waited: tuple[float, float]) -> tuple[RankRecord, ...]:
        waiters = [rank(2 + row, inside(called(8, waited[row]), row), idle=waited[row]) for row in (0, 1)]
        return (*waiters, *(rank(row, beyond(called(7, LONG + 0.2), row), idle=LONG + 0.2) for row in (0, 1)))

    (verdict,) = told(*replicas((LONG, LONG + 0.01)), communicators=rows)
    assert verdict.ranks == (0, 1)
    assert verdict.sentence == (
        "rank 1 on node-1 has not entered all_reduce #8 of 'mesh_dp' (ranks 1,3) for 1.0 s; rank 3 waits for it; "
        "its process sleeps; rank 0 on node-0 keeps others waiting, too"
    )
    (other,) = told(*replicas((LONG + 0.01, LONG)), communicators=rows)
    assert other.ranks == verdict.ranks, "the order does not change with who was waited for a moment longer"


def test_a_rank_of_which_nothing_is_known_is_never_named_and_may_be_the_culprit() -> None:
    assert told(*waiting(0, 1, 2)) == []
    waits_for_unknown = rank(2, beyond(called(7, 2.0)), inside(called(5, LONG), 1))
    assert told(*waiting(0, 1), waits_for_unknown) == []


def test_what_is_old_or_unrecorded_counts_as_unknown() -> None:
    detector = Detector(1, {})
    late = NodeReport(
        node="b", generation=1, communicators=(WORLD,), ranks=(rank(3, beyond(called(7, 9.0)), idle=9.0),)
    )
    detector.take(late, 100.0)
    detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=tuple(waiting(0, 1, 2))), 102.5)
    assert detector.verdicts(102.5) == []
    detector.take(late, 102.6)
    assert [verdict.ranks for verdict in detector.verdicts(102.6)] == [(3,)]
    blind = NodeReport(node="b", generation=1, communicators=(WORLD,), ranks=(), unrecorded=(3,))
    detector = Detector(1, {})
    detector.take(blind, 100.0)
    detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=tuple(waiting(0, 1, 2))), 100.0)
    assert detector.verdicts(100.0) == []


def test_a_finding_is_told_once_and_again_when_its_suspects_change() -> None:
    detector = Detector(1, {})
    entered, late = waiting(0, 1, 2), [rank(3, beyond(called(7, LONG + 0.1)))]

    def told_at(now: float) -> list[tuple[int, ...]]:
        report = NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=(*entered, *late))
        detector.take(report, now)
        return [verdict.ranks for verdict in detector.verdicts(now)]

    assert told_at(100.0) == [(3,)]
    assert told_at(100.1) == []
    entered, late = waiting(0, 1), [rank(number, beyond(called(7, LONG + 0.1))) for number in (2, 3)]
    assert told_at(100.2) == [(2, 3)]


def test_reports_of_another_generation_are_dropped() -> None:
    detector = Detector(2, {})
    records = (*waiting(0, 1, 2), rank(3, beyond(called(7, LONG + 0.1))))
    detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=records), 100.0)
    assert detector.verdicts(100.0) == []


def test_when_all_have_entered_and_none_leaves_communication_hangs() -> None:
    (verdict,) = told(*waiting(0, 1, 2, 3))
    assert (verdict.kind, verdict.ranks, set(verdict.nodes)) == (
        Kind.COMMUNICATION_HANG,
        (),
        {"node-0", "node-1", "node-2", "node-3"},
    )


def test_but_not_while_a_member_that_has_its_part_to_do_waits_for_a_processor() -> None:
    """Seen on a crowded machine: a rank within a reduce-scatter was given a twentieth of a processor."""
    for starved, told_of in ((LONG - 0.2, False), (0.2, True)):
        crowded = msgspec.structs.replace(rank(3, inside(called(8, LONG)), letter="R"), starved_seconds=starved)
        assert bool(told(*waiting(0, 1, 2), crowded)) == told_of


def test_ten_thousand_ranks_in_four_communicators_take_less_than_a_second() -> None:
    size = 10_000
    world = Communicator("world", tuple(range(size)))
    detector = Detector(1, {number: f"node-{number // 8}" for number in range(size)})
    reports = []
    for first in range(0, size, 8):
        some = tuple(Communicator(f"{kind}{first}", tuple(range(first, first + 8))) for kind in "abc")
        records = []
        for number in range(first, first + 8):
            at = beyond(called(7, 1.2)) if number == 4321 else inside(called(8, LONG))
            records.append(rank(number, at, *(beyond(called(7, 1.2), i) for i in (1, 2, 3))))
        reports.append(
            NodeReport(node=f"node-{first // 8}", generation=1, communicators=(world, *some), ranks=tuple(records))
        )
    begun = time.process_time()
    for report in reports:
        detector.take(report, 100.0)
    (verdict,) = detector.verdicts(100.0)
    seconds = time.process_time() - begun
    print(f"{size} ranks: {seconds:.2f} s of processor time")
    assert verdict.ranks == (4321,)
    assert len(verdict.waits) <= WAITS_MAX
    assert seconds < 1.0


def test_a_rank_whose_last_report_is_from_before_it_could_say_what_it_waits_for_is_not_named() -> None:
    """The link to its node is cut: rank 0's word does not come, and neither does the report that it waits for it."""

    def told_later(idle: float) -> list[Verdict]:
        detector = Detector(1, {number: f"node-{number}" for number in range(4)})
        silent = rank(3, beyond(called(7, idle)), idle=idle)
        waits = [rank(number, inside(called(8, idle + 0.55)), idle=idle + 0.55) for number in (0, 1, 2)]
        for now, records in ((100.0, [silent]), (100.6, waits)):
            for one in records:
                report = NodeReport(node=f"node-{one.rank}", generation=1, communicators=(WORLD, PAIR), ranks=(one,))
                detector.take(report, now)
        return detector.verdicts(100.6)

    assert told_later(0.24) == []
    (verdict,) = told_later(0.3)
    assert verdict.ranks == (3,)
