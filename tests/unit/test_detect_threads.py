"""Threads of a rank that go on beside its training: what they do neither hides a hang nor makes one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from unit.rank_reports import LONG, WORLD, beyond, called, inside, rank, told

from ftrain.comm.ring import PYTHON, Identity, ring_path
from ftrain.comm.writer import Call, RingWriter
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import Channel, Communicator, NodeReport, Op, RankRecord
from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.rings.rank_reader import RankReader

OWN = Communicator("own", (0, 1, 2, 3))
TRAINS, BESIDE = 5, 9
MS = 1_000_000


def hung(*records: RankRecord) -> list[tuple[Kind, tuple[int, ...], float]]:
    verdicts = told(*records, communicators=(WORLD, OWN))
    return [(verdict.kind, verdict.ranks, verdict.confidence) for verdict in verdicts]


def trains(number: int, *places: object, **more: object) -> RankRecord:
    """It waits for the others."""
    return rank(number, inside(called(8, LONG, thread=TRAINS)), *places, idle=LONG, **more)  # type: ignore[arg-type]


def test_a_rank_whose_monitor_goes_on_hangs_if_its_training_does() -> None:
    beat = beyond(called(30, 0.1, thread=BESIDE), 1)
    late = rank(2, beyond(called(7, LONG, thread=TRAINS)), beat, beside=(BESIDE,), beside_idle_seconds=0.1)
    others = [trains(number, beat, beside=(BESIDE,), beside_idle_seconds=0.1) for number in (0, 1, 3)]
    assert hung(*others, late) == [(Kind.HANG, (2,), 0.9)]


def test_a_monitor_that_comes_late_is_no_hang_while_training_goes_on_without_it() -> None:
    asks = inside(called(30, LONG, thread=BESIDE), 1)
    late = rank(2, beyond(called(7, 0.05, thread=TRAINS)), beyond(called(29, 2.0, thread=BESIDE), 1), idle=0.05)
    others = [
        rank(
            number, beyond(called(7, 0.05, thread=TRAINS)), asks, idle=0.05, beside=(BESIDE,), beside_idle_seconds=LONG
        )
        for number in (0, 1, 3)
    ]
    assert hung(*others, late) == []


def test_what_all_waited_for_outside_of_operations_makes_nobody_late_though_monitors_went_on() -> None:
    """All had no data for 3 s; rank 2 for a second more."""
    detector = Detector(1, {})

    def at(now: float, *idle: float, waited: float | None = None) -> list[Kind]:
        beat = beyond(called(30, 0.1, thread=BESIDE, gap_seconds=0.3), 1)
        ranks = []
        for number, seconds in enumerate(idle):
            world = beyond(called(7, seconds, thread=TRAINS))
            if waited is not None and number != 2:
                world = inside(called(8, waited, thread=TRAINS, gap_seconds=0.1))
            ranks.append(rank(number, world, beat, idle=seconds, beside=(BESIDE,), beside_idle_seconds=0.1))
        report = NodeReport(node="a", generation=1, communicators=(WORLD, OWN), ranks=tuple(ranks))
        detector.take(report, now)
        return [verdict.kind for verdict in detector.verdicts(now)]

    assert at(102.9, 2.9, 2.9, 2.9, 2.9) == []
    assert at(104.0, 1.0, 1.0, 4.0, 1.0, waited=1.0) == []
    assert at(108.0, 5.0, 5.0, 8.0, 5.0, waited=5.0) == [Kind.HANG]


SAVES: dict[str, Any] = {"beside": (BESIDE,), "beside_idle_seconds": 3.0}


@pytest.mark.parametrize("by", ["collective", "transfer"])
def test_who_is_in_an_operation_beside_its_training_hangs_where_others_went_on_in_it(by: str) -> None:
    """A checkpoint's slow collective, which all have entered: the others train meanwhile."""
    save = inside(called(3, 3.0, thread=BESIDE, usual_seconds=None), 1)
    if by == "collective":
        late = rank(2, beyond(called(7, LONG, thread=TRAINS)), save, **SAVES)
        others = [trains(number, save, **SAVES) for number in (0, 1, 3)]
    else:
        late = rank(2, save, channels=(Channel(0, 3, 7, 7, 7, 7, (), TRAINS),), **SAVES)
        receives = Channel(0, 2, 7, 7, 8, 7, (called(8, LONG, Op.RECEIVE, thread=TRAINS),), TRAINS)
        others = [rank(number, save, idle=0.1, **SAVES) for number in (0, 1)]
        others.append(rank(3, save, channels=(receives,), **SAVES))
    assert hung(*others, late) == [(Kind.HANG, (2,), 0.9)]


@pytest.mark.parametrize("thread", [TRAINS, BESIDE], ids=["its training is in it", "its training may wait for it"])
def test_it_does_not_where_they_have_left_it(thread: int) -> None:
    """What rank 2 gathers takes it longest, and its training may need that."""
    save = inside(called(3, 3.0, thread=thread, usual_seconds=None), 1)
    late = rank(2, beyond(called(7, LONG, thread=TRAINS)), save, **SAVES)
    left = beyond(called(3, 3.0, thread=BESIDE, usual_seconds=None), 1)
    assert hung(*(trains(number, left, **SAVES) for number in (0, 1, 3)), late) == []


def test_nor_where_its_own_thread_goes_on_after_theirs_were_done() -> None:
    """Rank 2 receives what the others have saved, one after the other, and its training waits for that."""
    late = rank(2, beyond(called(7, LONG, thread=TRAINS)), beside=(BESIDE,), beside_idle_seconds=0.1)
    assert hung(*(trains(number, **SAVES) for number in (0, 1, 3)), late) == []


def test_who_ends_its_step_meanwhile_does_not_hang() -> None:
    save = inside(called(3, 3.0, thread=BESIDE, usual_seconds=None), 1)
    late = rank(2, beyond(called(7, LONG, thread=TRAINS)), save, holds_seconds=LONG, **SAVES)
    assert hung(*(trains(number, save, **SAVES) for number in (0, 1, 3)), late) == []


def test_processes_that_all_end_within_an_operation_hang_in_nothing() -> None:
    """The training is over, and their threads beside it die as they are."""
    asks = inside(called(30, LONG, thread=BESIDE), 1)
    assert hung(*(rank(number, asks, letter="Z") for number in range(4))) == []
    stopped = [rank(number, asks, letter="T" if number == 1 else "Z") for number in range(4)]
    assert [ranks for _, ranks, _ in hung(*stopped)] == [(1,)]


# ---- what an agent reads


class Ring:
    """Rank 0's, whose main thread trains and whose monitor asks, each in a group."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns, self._patch = 1_000 * MS, monkeypatch
        path = ring_path(folder, 0)
        self.writer = RingWriter(path, Identity(PYTHON, TRAINS, 0, 0, 2, 1), lambda: self.now_ns, lambda: 0)
        self.world, self.own = (self.writer.add_communicator(name, (0, 1)) for name in ("world", "own"))
        self.reader = RankReader(path, 0, TRAINS, lambda group: int(group.name == "own"), self.now_ns)

    def call(self, communicator: int, thread: int) -> None:
        self._patch.setattr(threading, "get_native_id", lambda: thread)
        entered = self.writer.enter(Call(communicator=communicator, op=Op.ALL_REDUCE, bytes=64))
        self.now_ns += MS
        self.writer.leave(entered)
        self.now_ns += MS

    def steps(self, count: int, *others: tuple[int, int]) -> None:
        for step in range(count):
            self.call(self.world, TRAINS)
            for place in others:
                self.call(*place)
            self.writer.mark(step)

    def report(self) -> RankRecord:
        record, _ = self.reader.report(self.now_ns)
        assert record is not None
        return record


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ring:
    return Ring(tmp_path, monkeypatch)


def test_a_thread_that_comes_in_a_group_of_its_own_is_beside_the_training(ring: Ring) -> None:
    ring.steps(8)
    ring.now_ns += 500 * MS
    ring.call(ring.own, BESIDE)
    record = ring.report()
    assert record.beside == (BESIDE,)
    assert record.idle_seconds == pytest.approx(0.503)
    assert record.beside_idle_seconds == pytest.approx(0.001)


def test_one_that_shares_its_group_with_the_training_is_not(ring: Ring) -> None:
    ring.steps(8, (ring.own, BESIDE), (ring.own, TRAINS))
    assert ring.report().beside == ()


def test_nor_anybody_where_the_main_thread_enters_nothing(ring: Ring) -> None:
    for step in range(8):
        ring.call(ring.world, TRAINS + 1)
        ring.call(ring.own, BESIDE)
        ring.writer.mark(step)
    assert ring.report().beside == ()
