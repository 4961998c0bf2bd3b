"""The detector, given reports made by hand: who is named, who is not, and when nothing may be said."""

from __future__ import annotations

import time

import msgspec
import pytest

from ftrain_launcher.detect import mismatch
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import (
    Call,
    Channel,
    Collectives,
    Communicator,
    Departure,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)
from ftrain_launcher.detect.timeouts import allowed_seconds
from ftrain_launcher.detect.verdict import WAITS_MAX, Kind, Verdict

WORLD = Communicator("world", (0, 1, 2, 3))
PAIR = Communicator("pair", (2, 3))
LONG = 1.0
"""Longer than what is allowed here."""


def called(seq: int, age: float, op: Op = Op.ALL_REDUCE, **changes: float | None) -> Operation:
    known: dict[str, float | None] = {
        "elements": 100,
        "dtype": 6,
        "root": -1,
        "gap_seconds": 0.01,
        "usual_seconds": 0.02,
    }
    return Operation(seq=seq, op=op, bytes=400, age_seconds=age, **{**known, **changes})  # type: ignore[arg-type]


def inside(operation: Operation, communicator: int = 0) -> Collectives:
    """Entered, and not left."""
    return Collectives(communicator, operation.seq, operation.seq - 1, (operation,), operation)


def beyond(operation: Operation, communicator: int = 0) -> Collectives:
    """Entered and left."""
    return Collectives(communicator, operation.seq, operation.seq, (), operation)


def rank(number: int, *places: Collectives, letter: str = "S", idle: float = LONG + 0.1, **more: object) -> RankRecord:
    process = ProcessState(letter, 1.0, letter)
    return RankRecord(number, 10, idle + 1.0, places, process=process, idle_seconds=idle, **more)  # type: ignore[arg-type]


def told(
    *records: RankRecord, now: float = 100.0, communicators: tuple[Communicator, ...] = (WORLD, PAIR)
) -> list[Verdict]:
    """The verdicts on one report from each rank's own node."""
    detector = Detector(1, {number: f"node-{number}" for number in range(4)})
    for record in records:
        node = f"node-{record.rank}"
        detector.take(NodeReport(node=node, generation=1, communicators=communicators, ranks=(record,)), now)
    return detector.verdicts(now)


def waiting(*numbers: int, **changes: float | None) -> list[RankRecord]:
    return [rank(number, inside(called(8, LONG, **changes))) for number in numbers]  # type: ignore[arg-type]


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


def committing(number: int, age: float) -> RankRecord:
    """It has done its step, and waits for rank 0's word."""
    commit = called(11, age, Op.COMMIT, usual_seconds=None, gap_seconds=0.0)
    return rank(number, beyond(called(7, age + 0.3)), idle=age + 0.3, commit=commit)


@pytest.mark.parametrize(("letter", "seconds"), [("T", 0.6), ("S", 61.0)])
def test_rank_0_is_named_where_the_others_wait_for_it_at_the_end_of_a_step(letter: str, seconds: float) -> None:
    others = [committing(number, seconds) for number in (1, 2, 3)]
    hung = rank(0, beyond(called(7, seconds + 0.3)), letter=letter, idle=seconds + 0.3)
    (verdict,) = told(*others, hung)
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (0,))
    assert "rank 0 on node-0 has not entered commit #11 of the world group" in verdict.sentence
    earlier = [committing(number, 0.7 * seconds) for number in (1, 2, 3)]
    assert told(*earlier, rank(0, beyond(called(7, 0.7 * seconds)), letter=letter, idle=0.7 * seconds)) == []


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


def test_rank_0_may_have_ended_before_the_others_have_read_its_last_word() -> None:
    """They were given no processor meanwhile, say."""
    others = [committing(number, 3.0) for number in (1, 2, 3)]
    ended = msgspec.structs.replace(rank(0, beyond(called(7, 3.3)), letter="Z", idle=0.2), ended=True)
    assert told(*others, ended) == []
    others = [committing(number, 61.0) for number in (1, 2, 3)]
    ended = msgspec.structs.replace(rank(0, beyond(called(7, 61.3)), letter="", idle=61.3), ended=True)
    (verdict,) = told(*others, ended)
    assert verdict.ranks == (0,)


def test_who_waits_for_memory_at_the_end_of_a_step_is_waited_for_as_long_as_a_first_step() -> None:
    """Given a node that came in later, and whose daemon is slower than the others' were."""
    others = [rank(number, inside(called(8, LONG))) for number in (0, 1, 2)]
    at_end = rank(3, beyond(called(7, LONG + 0.1)))
    assert [verdict.ranks for verdict in told(*others, at_end)] == [(3,)]
    assert told(*others, msgspec.structs.replace(at_end, holds_seconds=LONG)) == []
    others = [rank(number, inside(called(8, 61.0))) for number in (0, 1, 2)]
    at_end = rank(3, beyond(called(7, 61.0)), idle=61.0)
    assert [v.ranks for v in told(*others, msgspec.structs.replace(at_end, holds_seconds=61.0))] == [(3,)]


def test_rank_0_may_write_a_checkpoint_of_its_own_before_the_others_go_on() -> None:
    detector = Detector(1, {})
    for seconds, now in ((0.3, 100.0), (100.0, 199.7)):
        used = ProcessState("S", 0.1 * now, "S")
        writes = RankRecord(0, 10, seconds, (beyond(called(7, seconds)),), process=used, idle_seconds=seconds)
        others = (committing(number, seconds - 0.3) for number in (1, 2, 3))
        detector.take(NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=(writes, *others)), now)
        assert detector.verdicts(now) == []


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


def channel(peer: int, sent: int, received: int, *pending: Operation) -> Channel:
    receiving = sum(operation.op == Op.RECEIVE for operation in pending)
    return Channel(0, peer, sent, sent, received, received - receiving, pending)


def receive(seq: int, age: float = LONG) -> Operation:
    return called(seq, age, Op.RECEIVE)


def test_in_a_pipeline_the_stage_that_does_not_send_is_named() -> None:
    (verdict,) = told(
        rank(0, channels=(channel(1, 5, 5, receive(5)),)),
        rank(1, channels=(channel(0, 4, 5), channel(2, 5, 5, receive(5)))),
        rank(2, channels=(channel(1, 4, 5), channel(3, 5, 5, receive(5)))),
        rank(3, channels=(channel(2, 4, 5),)),
    )
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (3,))


def test_what_was_sent_and_does_not_come_is_a_hang_of_communication() -> None:
    (verdict,) = told(
        rank(2, channels=(channel(3, 5, 5),)), rank(3, channels=(channel(2, 5, 5, receive(5)),)), communicators=(PAIR,)
    )
    assert (verdict.kind, set(verdict.nodes)) == (Kind.COMMUNICATION_HANG, {"node-2", "node-3"})


def test_nor_while_one_of_the_two_waits_for_a_processor() -> None:
    for starved in ((LONG, 0.0), (0.0, LONG)):
        sender, receiver = (
            msgspec.structs.replace(one, starved_seconds=seconds)
            for seconds, one in zip(
                starved,
                (rank(2, channels=(channel(3, 5, 5),)), rank(3, channels=(channel(2, 5, 5, receive(5)),))),
                strict=True,
            )
        )
        assert told(sender, receiver, communicators=(PAIR,)) == []


def test_of_ranks_in_a_circle_the_one_that_computes_is_named() -> None:
    first = rank(2, channels=(channel(3, 4, 5, receive(5)),))
    for second, kind, ranks in (("R", Kind.HANG, (3,)), ("S", Kind.MISMATCH, (2, 3))):
        other = rank(3, channels=(channel(2, 4, 5, receive(5)),), letter=second)
        (verdict,) = told(first, other, communicators=(PAIR,))
        assert (verdict.kind, verdict.ranks) == (kind, ranks)


def test_who_left_out_a_transfer_is_named_by_its_neighbours_where_all_others_went_on() -> None:
    """Four replicas of two stages of three ranks; rank 0 receives without having sent, which holds up its replica."""
    world = Communicator("world", tuple(range(24)))
    tensor = [Communicator("tp", tuple(range(first, first + 3))) for first in range(0, 24, 3)]
    pipe = [Communicator("pp", (first + lane, first + lane + 3)) for first in range(0, 24, 6) for lane in range(3)]
    detector = Detector(1, {number: f"node-{number}" for number in range(24)})
    for number in range(24):
        replica, stage, lane = number // 6, number // 3 % 2, number % 3
        peer = number + (3 if stage == 0 else -3)
        all_in = inside(called(3, LONG), 0), beyond(called(9, LONG + 0.3), 1)
        places, transfers = all_in, Channel(2, peer, 6, 6, 6, 6)
        if replica == 0:
            places = beyond(called(2, LONG + 0.9), 0), beyond(called(8, LONG + 0.2), 1)
            if stage == 0:  # each waits for the answer to what it sent, or did not send
                transfers = Channel(2, peer, 5 - (lane == 0), 5, 5, 4, (receive(5),))
            elif lane == 0:
                transfers = Channel(2, peer, 4, 4, 5, 4, (receive(5),))
            else:
                places = places[0], inside(called(9, LONG), 1)
                transfers = Channel(2, peer, 4, 4, 5, 5)
        known = world, tensor[number // 3], pipe[replica * 3 + lane]
        record = rank(number, *places, channels=(transfers,))
        detector.take(NodeReport(node=f"node-{number}", generation=1, communicators=known, ranks=(record,)), 100.0)
    (verdict,) = detector.verdicts(100.0)
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, (0,))
    assert "departed from the order of the others" in verdict.sentence


def test_the_minority_that_called_something_else_is_named_with_both_calls() -> None:
    (verdict,) = told(*waiting(0, 1, 2), rank(3, inside(called(8, LONG, Op.BROADCAST, root=0))))
    assert (verdict.kind, verdict.ranks, verdict.confidence) == (Kind.MISMATCH, (3,), 0.95)
    assert "rank 3 called broadcast of 100 elements from root 0" in verdict.sentence
    assert "ranks 0, 1, 2 called all_reduce of 100 elements" in verdict.sentence


def test_uneven_parts_are_no_mismatch_where_they_are_legal() -> None:
    for op in (Op.ALL_TO_ALL_SINGLE, Op.GATHER, Op.SCATTER):
        records = [rank(number, inside(called(8, LONG, op, elements=100 + number))) for number in range(4)]
        assert [verdict.kind for verdict in told(*records)] == [Kind.COMMUNICATION_HANG]


def test_orders_that_cross_are_a_mismatch_and_the_one_against_the_others_is_named() -> None:
    other = Communicator("other", (0, 1, 2, 3))
    first = [rank(n, inside(called(8, LONG)), beyond(called(7, 2.0), 1)) for n in (0, 1, 2)]
    crossed = rank(3, beyond(called(7, 2.0)), inside(called(8, LONG), 1))
    (verdict,) = told(*first, crossed, communicators=(WORLD, other))
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, (3,))
    assert "in a circle" in verdict.sentence


def test_after_a_crash_what_was_called_last_shows_the_mismatch() -> None:
    records = [rank(number, beyond(called(8, 0.1, elements=100 if number else 7))) for number in range(4)]
    report = NodeReport(node="a", generation=1, communicators=(WORLD,), ranks=tuple(records))
    (found,) = mismatch.find([report])
    assert (found.suspects, found.seq) == ((0,), 8)
    detector = Detector(1, {})
    detector.take(report, 100.0)
    assert detector.verdicts(100.0) == []
    verdict = detector.explain(100.0)
    assert verdict is not None
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, (0,))


def test_recent_operations_settle_between_two() -> None:
    pairs = tuple(Communicator(f"pair{n}", (2 * n, 2 * n + 1)) for n in range(2))
    passed = tuple(called(seq, 5.0) for seq in (7, 8, 9))
    others = [rank(n, Collectives(0, 9, 9, (), passed[-1], recent=passed), idle=0.1) for n in (0, 1)]
    right = rank(2, inside(called(8, LONG), 1))
    wrong = rank(3, inside(called(8, LONG, elements=7), 1))
    (verdict,) = told(*others, right, wrong, communicators=pairs)
    assert verdict.ranks == (3,)


@pytest.mark.parametrize(("sizes", "suspects"), [((4, 4, 1, 4, 4, 1), (3,)), ((4, 4, 4, 4, 4, 4), (2, 3))])
def test_the_round_before_settles_between_two(sizes: tuple[int, ...], suspects: tuple[int, ...]) -> None:
    """Four elements are due, if the operations before say anything: rank 3 has left them out."""
    pair = Communicator("pair", (2, 3))
    passed = tuple(called(seq, 5.0, elements=size) for seq, size in enumerate(sizes, start=4))
    pending = called(10, LONG, elements=4), called(10, LONG, elements=1)
    ranks = [
        rank(number, Collectives(0, 10, 9, (call,), passed[-1], recent=(*passed, call)))
        for number, call in zip((2, 3), pending, strict=True)
    ]
    (verdict,) = told(*ranks, communicators=(pair,))
    assert verdict.ranks == suspects


LEFT_OUT = Departure(Call(0, Op.RECEIVE, 2, 400), Call(0, Op.SEND, 2, 400))
OTHER_SIZE = Departure(Call(0, Op.RECEIVE, 3, 400), Call(0, Op.RECEIVE, 3, 68))


@pytest.mark.parametrize(
    ("mine", "theirs", "suspects"),
    [(None, LEFT_OUT, (3,)), (LEFT_OUT, LEFT_OUT, (2, 3)), (None, None, (2, 3)), (OTHER_SIZE, LEFT_OUT, (3,))],
    ids=["one departed", "both", "nobody", "one only in a size"],
)
def test_of_two_that_wait_for_each_other_the_one_that_departed_from_its_earlier_steps_is_named(
    mine: Departure | None, theirs: Departure | None, suspects: tuple[int, ...]
) -> None:
    first = rank(2, channels=(channel(3, 5, 5, receive(5)),), departure=mine)
    other = rank(3, channels=(channel(2, 4, 6, receive(6)),), departure=theirs)
    (verdict,) = told(first, other, communicators=(PAIR,))
    assert (verdict.kind, verdict.ranks) == (Kind.MISMATCH, suspects)
    assert ("rank 3 departed from the order of earlier steps" in verdict.sentence) == (suspects == (3,))
    if theirs is not None:
        assert verdict.details["program of rank 3"] == (
            "it called recv from 2 (400 bytes) of 'pair' (ranks 2-3) where its earlier steps called send to 2 "
            "(400 bytes) of 'pair' (ranks 2-3)"
        )


def test_of_two_that_called_different_things_the_one_that_departed_is_named_with_the_types() -> None:
    right = rank(2, inside(called(8, LONG), 1))
    wrong = rank(3, inside(called(8, LONG, dtype=7), 1), departure=LEFT_OUT)
    (verdict,) = told(right, wrong)
    assert verdict.ranks == (3,)
    assert (
        "rank 2 called all_reduce of 100 float32 elements, rank 3 called all_reduce of 100 float64" in verdict.sentence
    )


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
