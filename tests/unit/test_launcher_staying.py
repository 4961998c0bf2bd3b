"""Who goes on in the same process, who takes which place, and what that is called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ftrain_launcher.job.rungs import Rung, rung_of
from ftrain_launcher.node.staying import Seen, Waiting, WaitingRoom, can_stay

HEALTHY = Seen(alive=True, state="S")
ARGV = ("train.py",)


def test_a_healthy_worker_is_asked_to_leave() -> None:
    assert can_stay(HEALTHY)
    assert can_stay(replace(HEALTHY, state="R"))


@pytest.mark.parametrize(
    "seen",
    [
        replace(HEALTHY, alive=False),
        replace(HEALTHY, state="T"),
        replace(HEALTHY, finished=True),
        replace(HEALTHY, fails=True),
        replace(HEALTHY, suspected=True),
    ],
    ids=["dead", "stopped", "finished", "fails", "suspected"],
)
def test_no_grace_time_is_spent_on_one_that_cannot_or_must_not_stay(seen: Seen) -> None:
    assert not can_stay(seen)


def test_a_lane_goes_to_its_own_process_then_to_a_standby() -> None:
    room = WaitingRoom()
    room.add(Waiting("standby", 1, ARGV, None))
    room.add(Waiting("lane-0", 2, ARGV, 0))
    room.add(Waiting("lane-2", 3, ARGV, 2))
    assert (room.stayed, room.standbys) == (2, 1)
    taken = [room.take(lane, ARGV) for lane in range(3)]
    assert [one and one.id for one in taken] == ["lane-0", "standby", "lane-2"]
    assert room.take(3, ARGV) is None
    assert room.ids == set()


def test_a_standby_with_other_arguments_is_no_help() -> None:
    room = WaitingRoom()
    room.add(Waiting("standby", 1, ("train.py", "--lane", "0"), None))
    assert room.take(1, ("train.py", "--lane", "1")) is None
    assert room.take(0, ("train.py", "--lane", "0")) is not None


def test_one_that_has_ended_waits_no_longer() -> None:
    room = WaitingRoom()
    room.add(Waiting("lane-0", 2, ARGV, 0))
    room.remove("lane-0")
    room.remove("lane-0")
    assert room.take(0, ARGV) is None


@pytest.mark.parametrize(
    ("now", "staying", "durable", "rung"),
    [
        ("ab", 1, False, Rung.SAME_PROCESSES),
        ("ab", 0, False, Rung.NEW_PROCESSES),
        ("ac", 1, False, Rung.OTHER_NODE),
        ("a", 1, False, Rung.OTHER_WORLD),
        ("ab", 1, True, Rung.STORAGE),
    ],
)
def test_the_rung_is_the_costliest_thing_that_was_done(now: str, staying: int, durable: bool, rung: Rung) -> None:
    assert rung_of("ab", now, staying=staying, durable=durable) is rung
