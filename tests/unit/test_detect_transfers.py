"""The detector where ranks send to each other: pipelines, circles, and a transfer that was left out."""

from __future__ import annotations

import msgspec
import pytest
from unit.rank_reports import LONG, PAIR, WORLD, beyond, called, channel, inside, rank, receive, told

from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import Channel, Communicator, NodeReport, Op
from ftrain_launcher.detect.verdict import Kind


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


@pytest.mark.parametrize("ended", [True, False])
def test_who_has_sent_and_ended_may_be_waited_for_by_an_older_report(*, ended: bool) -> None:
    """The last thing that a job does is a send: the receiver goes on, and its report is on its way."""
    sender = rank(2, channels=(channel(3, 5, 5),), letter="Z", idle=0.1, ended=ended)
    detector = Detector(1, {})
    for one in (sender, rank(3, channels=(channel(2, 5, 5, receive(5, 0.1)),), idle=0.1)):
        detector.take(NodeReport(node=f"{one.rank}", generation=1, communicators=(PAIR,), ranks=(one,)), 100.0)
    assert [verdict.ranks for verdict in detector.verdicts(100.45)] == ([] if ended else [(2,)])


def test_of_ranks_in_a_circle_the_one_that_computes_is_named() -> None:
    first = rank(2, channels=(channel(3, 4, 5, receive(5)),))
    for second, kind, ranks in (("R", Kind.HANG, (3,)), ("S", Kind.MISMATCH, (2, 3))):
        other = rank(3, channels=(channel(2, 4, 5, receive(5)),), letter=second)
        (verdict,) = told(first, other, communicators=(PAIR,))
        assert (verdict.kind, verdict.ranks) == (kind, ranks)


def test_what_was_a_guess_is_told_again_once_it_is_sure() -> None:
    """A thread of rank 2 waits for rank 0's, which writes a checkpoint, and the training of rank 2 hangs; then it is
    written. Nothing follows from a guess, so that the hang would go on for ever."""
    own = Communicator("own", (0, 1, 2, 3), "checkpoint")
    detector = Detector(1, {})

    def told_at(now: float, idle: float, *, written: bool) -> list[tuple[Kind, tuple[int, ...], bool]]:
        barrier = called(1, idle + 0.5, Op.BARRIER, usual_seconds=None)
        aside = beyond(barrier, 1) if written else inside(barrier, 1)
        world = inside(called(8, now - 99.0))
        ranks = (
            rank(0, world, *([aside] if written else []), idle=now - 99.0),
            *(rank(number, world, aside, idle=now - 99.0) for number in (1, 3)),
            rank(2, beyond(called(7, idle)), aside, idle=idle),
        )
        detector.take(NodeReport(node="a", generation=1, communicators=(WORLD, own), ranks=ranks), now)
        return [(verdict.kind, verdict.ranks, verdict.confidence > 0.5) for verdict in detector.verdicts(now)]

    assert told_at(100.0, 1.1, written=False) == [(Kind.HANG, (2,), False)]
    assert told_at(100.5, 1.6, written=False) == []
    assert told_at(101.0, 2.1, written=True) == [(Kind.HANG, (2,), True)]
    assert told_at(101.5, 2.6, written=True) == []


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
