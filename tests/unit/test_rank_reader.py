"""What an agent reads of one rank's ring: a ring written by hand, on a made-up clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ftrain.comm.ring import HOLDS, PYTHON, WAITS, Group, Identity, ring_path
from ftrain.comm.writer import Call, RingWriter
from ftrain_launcher.detect import records
from ftrain_launcher.detect.records import Departure, Op, ProcessState, RankRecord
from ftrain_launcher.rings.helpers import Helpers
from ftrain_launcher.rings.rank_reader import RankReader
from ftrain_launcher.rings.starvation import Waited

MS = 1_000_000
RECEIVE = records.Call(0, Op.RECEIVE, 0, 64)
SEND = records.Call(0, Op.SEND, 0, 64)


class Ring:
    """Rank 1 of two, and its reader. Each call and each step takes a millisecond."""

    def __init__(self, folder: Path) -> None:
        self.now_ns = 1_000 * MS
        self.path = path = ring_path(folder, 0)
        self.writer = RingWriter(path, Identity(PYTHON, os.getpid(), 1, 0, 2, 1), self._clock, lambda: 0)
        self.group = self.writer.add_communicator("pair", (0, 1))
        self.reader = self.read(path)

    def read(self, path: Path) -> RankReader:
        """As an agent does that opens the ring now."""
        return RankReader(path, 1, os.getpid(), self._index, self.now_ns)

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


def test_whose_turn_it_was_is_told_by_the_steps_on_record_however_few(ring: Ring) -> None:
    for step in range(14):
        ring.call(*("srsr" if step % 3 else "srsrsr"))
        ring.mark(step)
    ring.call(*"srsrsr")
    ring.call("s", ends=False)
    assert ring.report(after_ms=300)[0].departure == Departure(SEND, None)


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


def test_once_rank_0_has_spoken_it_ends_its_step_without_waiting_for_anybody(ring: Ring) -> None:
    ring.steps(5)
    ring.call(*"srsr")
    ring.mark(WAITS)
    ring.report(after_ms=300)
    ring.mark(HOLDS)
    record, _ = ring.report(after_ms=1000)
    assert (record.step, record.commit, record.holds_seconds) == (4, None, pytest.approx(1.0))
    ring.mark(5)
    record, told = ring.report()
    assert (record.step, record.commit, record.holds_seconds, told) == (5, None, None, [5])


def test_a_step_that_ends_too_early_is_a_departure_when_others_are_waited_for(ring: Ring) -> None:
    ring.steps(5)
    ring.call(*"srs")
    ring.mark(WAITS)
    assert ring.report(after_ms=500)[0].departure == Departure(None, RECEIVE)


class Kernel:
    """Says how long the process has waited for a processor; None: it has ended."""

    def __init__(self, *waited: float | None) -> None:
        self._waited = list(waited)

    def more(self) -> Waited | None:
        seconds = self._waited.pop(0)
        return None if seconds is None else Waited(seconds)

    def queued_seconds(self, letter: str, now_ns: int) -> float:
        """It waits for none by now, unless its state is made up."""
        return 0.3 if letter == "R, and has no turn" else 0.0


def starved(ring: Ring, kernel: Kernel, *, before_ms: int = 0) -> list[float]:
    """Five steps of own time of some 5 ms each, and more steps after a wait of so long: milliseconds told of each."""
    ring.reader._starvation = kernel  # type: ignore[assignment]
    ring.steps(5)
    first = ring.reader.report(ring.now_ns + before_ms * MS)[1]
    ring.now_ns += before_ms * MS
    ring.steps(2, first=5)
    second = ring.reader.report(ring.now_ns)[1]
    return [round(step.starved_seconds * 1e3, 3) for step in (*first, *second)]


def test_what_waits_for_a_processor_in_the_step_at_hand_is_told_with_that_step(ring: Ring) -> None:
    told = starved(ring, Kernel(0.120, 0.0), before_ms=100)
    assert told[:4] == [5.0] * 4
    assert sum(told[4:]) == pytest.approx(100.0)
    assert told[4] > 90.0


def test_but_no_more_than_that_step_has_lasted(ring: Ring) -> None:
    told = starved(ring, Kernel(9.0, 0.0), before_ms=20)
    assert sum(told[4:]) == pytest.approx(20.0)


def test_of_a_process_that_has_ended_the_last_steps_are_not_told(ring: Ring) -> None:
    assert len(starved(ring, Kernel(0.0, None))) == 4


def test_nor_those_that_it_had_begun_before_its_ring_was_opened(ring: Ring) -> None:
    ring.steps(5)
    ring.call("s")
    late = ring.read(ring.path)
    ring.steps(3, first=5)
    assert [step.step for step in late.report(ring.now_ns)[1]] == [6, 7]


def test_waits_for_a_processor_are_told_as_of_when_it_last_entered_or_left_anything(ring: Ring) -> None:
    ring.reader._starvation = Kernel(9.0, 0.4, 0.3)  # type: ignore[assignment]
    ring.steps(2)
    assert [round(ring.report(after_ms=ms)[0].starved_seconds, 2) for ms in (100, 500)] == [0.1, 0.5]
    ring.call("s")
    assert ring.report(after_ms=50)[0].starved_seconds == pytest.approx(0.05)


class Sleeping:
    """The process is asleep, or in another state."""

    def __init__(self, letter: str = "S") -> None:
        self._letter = letter

    def read(self) -> ProcessState:
        return ProcessState(self._letter, 1.0, self._letter)

    def close(self) -> None: ...


def test_what_it_waits_for_a_processor_by_now_counts_before_it_has_one(ring: Ring) -> None:
    """Else a rank that gets none for a second, which the kernel tells when it has one, would be called hung."""
    ring.reader._process.close()
    ring.reader._process = Sleeping("R, and has no turn")  # type: ignore[assignment]
    ring.reader._starvation = Kernel(0.0, 0.0, 0.2)  # type: ignore[assignment]
    ring.steps(2)
    ring.report()
    ring.reader.look(ring.now_ns)
    assert [round(ring.report(after_ms=ms)[0].starved_seconds, 2) for ms in (800, 100)] == [0.3, 0.5]


def test_a_rank_that_sleeps_while_the_thread_that_copies_for_it_is_starved_is_starved(ring: Ring) -> None:
    """Before the optimizer may write, the snapshot has been copied. Seen on a crowded machine: a hang that was none."""
    ring.reader._process.close()
    ring.reader._process = Sleeping()  # type: ignore[assignment]
    ring.reader._helpers = Helpers(lambda: {"copier": (ring.now_ns - 500 * MS) * 1e-9})
    ring.reader._starvation = Kernel(*[0.0] * 4)  # type: ignore[assignment]
    ring.steps(2)
    ring.report()

    def looked(times: int) -> float:
        for _ in range(times):
            ring.now_ns += 100 * MS
            ring.reader.look(ring.now_ns)
        record, _ = ring.report()
        return record.starved_seconds

    assert looked(2) == pytest.approx(0.0, abs=0.05)
    assert looked(7) == pytest.approx(0.9, abs=0.05)
    ring.call("s", ends=False)
    assert looked(7) == pytest.approx(0.0, abs=0.05), "it is inside, and waits for others"
