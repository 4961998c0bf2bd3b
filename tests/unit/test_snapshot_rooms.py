"""Memory for answers is used again once nobody refers to it."""

from __future__ import annotations

from ftrain_snapshot.read_plan import READ_BYTES_MAX
from ftrain_snapshot.rooms import SPARE_MAX, Rooms


def test_a_room_is_as_long_as_is_asked_for() -> None:
    rooms = Rooms()
    for length in (0, 1, READ_BYTES_MAX):
        assert rooms.take(length).nbytes == length


def test_memory_is_used_again_only_when_no_view_of_it_is_left() -> None:
    rooms = Rooms()
    room = rooms.take(100)
    room[:3] = b"abc"
    part = room[1:3]
    del room
    other = rooms.take(100)
    other[:3] = b"xyz"
    assert bytes(part) == b"bc"
    del part
    assert bytes(rooms.take(100)[:3]) == b"abc"  # what was there before


def test_no_more_than_some_are_kept() -> None:
    rooms = Rooms()
    taken = [rooms.take(1) for _ in range(SPARE_MAX + 3)]
    del taken
    assert len(rooms._spare) == SPARE_MAX
