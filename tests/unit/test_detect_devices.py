"""The detector where operations are called long before a device comes to them, as on NCCL."""

from __future__ import annotations

from msgspec.structs import replace
from unit.rank_reports import LONG, PAIR, called, channel, inside, rank, receive, told

from ftrain_launcher.detect.records import Channel, Collectives, RankRecord
from ftrain_launcher.detect.verdict import Kind

WAITS = inside(called(8, LONG))


def queueing(number: int, *places: Collectives, queued: int = 3) -> RankRecord:
    """A rank whose device has done seven collectives of the world, and not come to those that were called since."""
    world = Collectives(0, 7, 7, (), called(7, LONG + 0.1), queued=queued)
    return rank(number, world, *places)


def test_who_has_called_what_its_device_has_not_reached_is_named_with_that() -> None:
    (verdict,) = told(rank(0, WAITS), rank(1, WAITS), queueing(2), rank(3, WAITS))
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (2,))
    assert "rank 2 on node-2 has not entered all_reduce #8" in verdict.sentence
    assert "ranks 0, 1, 3 wait for it; it was called, but the device has not reached it" in verdict.sentence


def test_who_has_not_even_called_it_is_named_without() -> None:
    (verdict,) = told(rank(0, WAITS), rank(1, WAITS), queueing(2, queued=0), rank(3, WAITS))
    assert verdict.ranks == (2,)
    assert "device" not in verdict.sentence


def test_of_two_it_is_said_which_one_has_called_it() -> None:
    (verdict,) = told(rank(0, WAITS), queueing(1, queued=0), queueing(2), rank(3, WAITS))
    assert verdict.ranks == (1, 2)
    assert "of rank 2: it was called, but the device has not reached it" in verdict.sentence


def test_whose_device_waits_in_another_group_for_a_rank_is_not_named_but_that_rank_is() -> None:
    """It comes to the world's operation after that."""
    pair = inside(called(5, LONG), 1)
    late = Collectives(1, 4, 4, (), called(4, LONG + 0.1), queued=1)
    (verdict,) = told(rank(0, WAITS), rank(1, WAITS), queueing(2, pair), queueing(3, late))
    assert (verdict.kind, verdict.ranks) == (Kind.HANG, (3,))


def test_what_all_devices_have_reached_is_a_hang_of_communication() -> None:
    (verdict,) = told(*(rank(number, replace(WAITS, queued=number)) for number in range(4)))
    assert (verdict.kind, verdict.ranks) == (Kind.COMMUNICATION_HANG, ())


def test_who_has_called_a_send_that_its_device_has_not_reached_is_named_with_that() -> None:
    waits = rank(2, channels=(channel(3, 5, 5, receive(5)),))
    for queued, is_said in ((1, True), (0, False)):
        sends = Channel(0, 2, 4, 4, 5, 5, sends_queued=queued)
        (verdict,) = told(waits, rank(3, channels=(sends,)), communicators=(PAIR,))
        assert (verdict.kind, verdict.ranks) == (Kind.HANG, (3,))
        assert ("it was called, but the device has not reached it" in verdict.sentence) == is_said
