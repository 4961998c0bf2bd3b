"""What an agent reads of operations that a device does: a ring written by hand, on a made-up clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftrain.comm.ring import PYTHON, Group, Identity, ring_path
from ftrain.comm.writer import Call, Entered, RingWriter
from ftrain_launcher.detect.records import Op, RankRecord
from ftrain_launcher.rings.rank_reader import RankReader

MS = 1_000_000


class Ring:
    """One rank's, and its reader."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = 1_000 * MS
        path = ring_path(folder, 0)
        self.writer = RingWriter(path, Identity(PYTHON, os.getpid(), 1, 0, 2, 1), lambda: self.now_ns, lambda: 0)
        self.group = self.writer.add_communicator("pair", (0, 1))
        self.reader = RankReader(path, 1, os.getpid(), self._index, self.now_ns)

    def _index(self, group: Group) -> int:
        return 0

    def call(self, op: Op = Op.ALL_REDUCE, *, on_device: bool = True) -> Entered:
        root, sends = (0, op is Op.SEND) if op in (Op.SEND, Op.RECEIVE) else (-1, None)
        call = Call(communicator=self.group, op=op, bytes=64, root=root, sends=sends, on_device=on_device)
        return self.writer.enter(call)

    def report(self, after_ms: int) -> RankRecord:
        self.now_ns += after_ms * MS
        record, _ = self.reader.report(self.now_ns)
        assert record is not None
        return record


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


def test_what_is_called_is_entered_once_the_device_has_reached_it(ring: Ring) -> None:
    calls = [ring.call() for _ in range(20)]  # more than are kept of a communicator
    (place,) = ring.report(after_ms=100).collectives
    assert (place.entered, place.completed, place.queued, place.pending, place.last) == (0, 0, 20, (), None)
    ring.writer.reach(calls[0])
    (place,) = ring.report(after_ms=30).collectives
    assert (place.entered, place.queued) == (1, 19)
    assert [(one.seq, one.age_seconds) for one in place.pending] == [(1, pytest.approx(0.03))]
    assert place.last == place.pending[0]
    ring.writer.leave(calls[0])
    (place,) = ring.report(after_ms=30).collectives
    assert (place.entered, place.completed, place.queued, place.pending) == (1, 1, 19, ())


def test_to_call_what_the_device_does_not_reach_is_no_movement(ring: Ring) -> None:
    done = ring.call()
    ring.writer.reach(done)
    ring.writer.leave(done)
    ring.report(after_ms=1)
    for _ in range(5):
        later = ring.call()
        record = ring.report(after_ms=100)
    assert record.idle_seconds == pytest.approx(0.501)
    ring.writer.reach(later)
    assert ring.report(after_ms=10).idle_seconds == pytest.approx(0.01)


def test_an_operation_lasts_from_when_the_device_has_reached_it(ring: Ring) -> None:
    for _ in range(10):
        call = ring.call()
        ring.report(after_ms=100)
        ring.writer.reach(call)
        ring.report(after_ms=5)
        ring.writer.leave(call)
        ring.report(after_ms=1)
    ring.writer.reach(ring.call())
    (place,) = ring.report(after_ms=1).collectives
    assert place.pending[0].usual_seconds == pytest.approx(0.005)


def test_sends_and_receives_are_counted_by_direction(ring: Ring) -> None:
    send, receive = ring.call(Op.SEND), ring.call(Op.RECEIVE)
    ring.writer.wait_begins(receive)
    (channel,) = ring.report(after_ms=1).channels
    assert (channel.sends_entered, channel.sends_queued) == (0, 1)
    assert (channel.receives_entered, channel.receives_queued) == (0, 1)
    ring.writer.reach(receive)
    (channel,) = ring.report(after_ms=1).channels
    assert (channel.sends_queued, channel.receives_entered, channel.receives_queued) == (1, 1, 0)
    assert [one.op for one in channel.pending] == [Op.RECEIVE]
    ring.writer.reach(send)
    ring.writer.leave(send)
    (channel,) = ring.report(after_ms=1).channels
    assert (channel.sends_entered, channel.sends_completed, channel.sends_queued) == (1, 1, 0)


def test_what_a_processor_does_is_entered_at_once(ring: Ring) -> None:
    ring.call(on_device=False)
    (place,) = ring.report(after_ms=50).collectives
    assert (place.entered, place.queued, [one.seq for one in place.pending]) == (1, 0, [1])
