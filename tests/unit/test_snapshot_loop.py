"""The daemon's loop, stepped by hand: timers in order, work in slices, and nobody called who has left."""

import socket
from collections.abc import Iterator

import pytest
from snapshot_lines import Bench, bench

from ftrain_snapshot.loop import Work


@pytest.fixture
def line() -> Iterator[Bench]:
    with bench() as made:
        yield made


def test_timers_are_called_when_they_are_due_and_in_order(line: Bench):
    called: list[str] = []
    for name, delay in [("late", 3.0), ("early", 1.0), ("cancelled", 2.0), ("with it", 1.0)]:
        timer = line.loop.later(delay, lambda name=name: called.append(name))
        if name == "cancelled":
            timer.cancel()
    line.turns(2)
    assert called == []
    line.now = 2.5
    line.turns(1)
    assert called == ["early", "with it"]
    line.now = 3.0
    line.turns(1)
    assert called == ["early", "with it", "late"]


def test_long_work_goes_on_between_events(line: Bench):
    steps: list[int] = []

    def work() -> Work:
        for step in range(3):
            steps.append(step)
            yield

    task = line.loop.spawn(work())
    assert steps == [0]
    line.turns(1)
    assert steps == [0, 1]
    task.cancel()
    line.turns(3)
    assert steps == [0, 1]
    assert task.done


def test_who_was_forgotten_in_the_same_round_is_not_called(line: Bench):
    heard: list[socket.socket] = []
    pairs = [line.sockets() for _ in range(2)]

    def handler(sock: socket.socket) -> None:
        heard.append(sock)
        for _, other in pairs:
            line.loop.forget(other)

    for near, far in pairs:
        line.loop.watch(far, lambda _r, _w, sock=far: handler(sock))
        near.send(b"x")
    line.turns(2)
    assert len(heard) == 1
