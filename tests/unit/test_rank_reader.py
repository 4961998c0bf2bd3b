"""What an agent reads of one rank's ring: a ring written by hand, on a made-up clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftrain.comm.ring import PYTHON, WAITS, Group, Identity, ring_path
from ftrain.comm.writer import Call, RingWriter
from ftrain_launcher.detect import records
from ftrain_launcher.detect.records import Departure, Op, RankRecord
from ftrain_launcher.rings.rank_reader import RankReader

MS = 1_000_000
RECEIVE = records.Call(0, Op.RECEIVE, 0, 64)
SEND = records.Call(0, Op.SEND, 0, 64)


class Ring:
    """Rank 1 of two, and its reader. Each call and each step takes a millisecond."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = 1_000 * MS
        path = ring_path(folder, 0)
        self.writer = RingWriter(path, Identity(PYTHON, os.getpid(), 1, 0, 2, 1), self._clock)
        self.group = self.writer.add_communicator("pair", (0, 1))
        self.reader = RankReader(path, 1, os.getpid(), self._index)

    def _clock(self) -> int:
        return self.now_ns

    def _index(self, group: Group) -> int:
        return 0

    def call(self, *letters: str, ends: bool = True) -> None:
        for letter in letters:
            self.now_ns += MS
            op = Op.SEND if letter == "s" else Op.RECEIVE
            entered = self.writer.enter(Call(communicator=self.group, op=op, bytes=64, root=0, sends=letter == "s"))
            if not ends:
                self.writer.wait_begins(entered)
                return
            self.now_ns += MS
            self.writer.leave(entered)

    def mark(self, step: int) -> None:
        self.now_ns += MS
        self.writer.mark(step)

    def steps(self, count: int, first: int = 0) -> None:
        for step in range(first, first + count):
            self.call(*"srsr")
            self.mark(step)

    def report(self, after_ms: int = 0) -> tuple[RankRecord, list[int]]:
        """The record, and the steps that were told."""
        self.now_ns += after_ms * MS
        record, done = self.reader.report(self.now_ns)
        assert record is not None
        return record, [step.step for step in done]


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(tmp_path)


def test_a_rank_that_has_left_an_operation_out_departs_from_its_earlier_steps_once_it_waits(ring: Ring) -> None:
    ring.steps(5)
    ring.call(*"sr")
    ring.call("r", ends=False)
    assert ring.report(after_ms=10)[0].departure is None
    assert ring.report(after_ms=300)[0].departure == Departure(RECEIVE, SEND)
    assert ring.report(after_ms=300)[0].departure == Departure(RECEIVE, SEND)


def test_one_that_is_held_up_in_its_usual_course_departs_from_nothing(ring: Ring) -> None:
    ring.steps(5)
    ring.call("s")
    ring.call("r", ends=False)
    assert ring.report(after_ms=300)[0].departure is None


def test_at_the_end_of_a_step_it_waits_for_rank_0_until_the_mark(ring: Ring) -> None:
    ring.steps(5)
    ring.call(*"srsr")
    ring.mark(WAITS)
    record, told = ring.report(after_ms=1000)
    assert (record.step, record.commit is not None, record.departure) == (4, True, None)
    assert record.commit is not None
    assert (record.commit.seq, record.commit.op, record.commit.age_seconds) == (5, Op.COMMIT, pytest.approx(1.0))
    ring.mark(5)
    ring.steps(1, first=6)
    record, more = ring.report()
    assert (record.step, record.commit) == (6, None)
    assert told + more == [1, 2, 3, 4, 5, 6]


def test_a_step_that_ends_too_early_is_a_departure_when_others_are_waited_for(ring: Ring) -> None:
    ring.steps(5)
    ring.call(*"srs")
    ring.mark(WAITS)
    assert ring.report(after_ms=500)[0].departure == Departure(None, RECEIVE)
