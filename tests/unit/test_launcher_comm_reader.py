"""The agent's reader, against rings made by the Python writer."""

import os
import threading
from pathlib import Path

import pytest

from ftrain.comm.ring import NONE, PYTHON, RECORDS_MAX, Identity, RingReader, ring_path
from ftrain.comm.writer import Call, Entered, RingWriter
from ftrain_launcher.detect.records import Communicator, NodeReport, Op, RankRecord
from ftrain_launcher.rings.lateness import late_in_seconds
from ftrain_launcher.rings.rank_reader import RankReader
from ftrain_launcher.rings.reader import CommReader

MS = 1_000_000
SECOND = 1000 * MS
WORLD = (0, 1, 2, 3)
PID_NOBODY_HAS = 2**31 - 2


class Clock:
    """A made-up CLOCK_MONOTONIC in nanoseconds."""

    def __init__(self) -> None:
        self.ns = 1000 * SECOND

    def __call__(self) -> int:
        return self.ns

    def tick(self, milliseconds: float) -> None:
        self.ns += int(milliseconds * MS)


class Worker:
    """A made-up worker that writes its ring."""

    def __init__(self, folder: Path, *, rank: int = 0, generation: int = 1, pid: int | None = None) -> None:
        self.clock = Clock()
        self.pid = os.getpid() if pid is None else pid
        identity = Identity(PYTHON, self.pid, rank, rank, len(WORLD), generation)
        self.place = (rank, rank, self.pid)
        self.path = ring_path(folder, rank)
        self.ring = RingWriter(self.path, identity, self.clock, lambda: 0)

    def enter(self, communicator: int, op: int = Op.ALL_REDUCE, **fields: int | bool):
        return self.ring.enter(Call(communicator=communicator, op=op, **fields))

    def operate(self, communicator: int, op: int = Op.ALL_REDUCE, *, ms: float = 1, **fields: int | bool) -> None:
        entered = self.enter(communicator, op, **fields)
        self.clock.tick(ms)
        self.ring.leave(entered)

    def reader(self) -> RankReader:
        return RankReader(self.path, self.place[0], self.pid, lambda group: 0 if group.members == WORLD else 1, 0)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


def read(folder: Path, *workers: Worker, generation: int = 1) -> NodeReport:
    return CommReader("node0").read(generation, [w.place for w in workers], folder)


def now(worker: Worker) -> RankRecord:
    record, _ = worker.reader().report(worker.clock.ns)
    assert record is not None
    return record


# ---- where a rank is


def test_a_pending_operation_is_told_with_its_age_and_the_time_outside_before(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    worker.operate(world)
    worker.clock.tick(20)
    worker.enter(world, bytes=4096, elements=1024, dtype=6)
    worker.clock.tick(300)
    (collectives,) = now(worker).collectives
    (operation,) = collectives.pending
    assert (collectives.entered, collectives.completed) == (2, 1)
    assert (operation.seq, operation.op, operation.bytes, operation.elements, operation.dtype) == (2, 1, 4096, 1024, 6)
    assert operation.age_seconds == pytest.approx(0.300)
    assert operation.gap_seconds == pytest.approx(0.020)
    assert collectives.last == operation


def test_a_rank_outside_shows_the_last_operation_and_none_pending(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    for _ in range(3):
        worker.operate(world, Op.BROADCAST, root=2, ms=5)
    worker.clock.tick(1000)
    (collectives,) = now(worker).collectives
    assert (collectives.entered, collectives.completed, collectives.pending) == (3, 3, ())
    assert collectives.last is not None
    assert (collectives.last.seq, collectives.last.root) == (3, 2)
    assert collectives.last.age_seconds == pytest.approx(1.005)


def test_more_pending_ones_than_slots_keep_the_oldest(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    for _ in range(20):
        worker.enter(world)
    (collectives,) = now(worker).collectives
    assert (collectives.entered, collectives.completed) == (20, 0)
    assert [operation.seq for operation in collectives.pending] == list(range(1, 9))


def test_one_that_hangs_is_seen_though_newer_ones_complete(worker: Worker):
    world, pair = worker.ring.add_communicator("0", WORLD), worker.ring.add_communicator("1", (0, 1))
    worker.enter(pair)
    for _ in range(RECORDS_MAX + 100):
        worker.operate(world, ms=0)
    worker.clock.tick(100)
    first, second = now(worker).collectives
    assert first.pending == ()
    assert [operation.age_seconds for operation in second.pending] == [pytest.approx(0.100)]


def test_sends_and_receives_are_counted_by_peer(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    worker.operate(world, Op.SEND, root=3, sends=True)
    worker.operate(world, Op.SEND, root=3, sends=True)
    worker.operate(world, Op.RECEIVE, root=3, sends=False)
    entered = worker.enter(world, Op.RECEIVE, root=1, sends=False)
    worker.ring.wait_begins(entered)
    worker.clock.tick(50)
    three, one = now(worker).channels
    assert (three.peer, three.sends_entered, three.sends_completed, three.receives_completed) == (3, 2, 2, 1)
    assert (one.peer, one.receives_entered, one.receives_completed) == (1, 1, 0)
    assert [operation.age_seconds for operation in one.pending] == [pytest.approx(0.050)]


def test_a_receive_for_which_nobody_waits_yet_is_not_pending(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    worker.ring.returned(worker.enter(world, Op.RECEIVE, root=1, sends=False))
    worker.clock.tick(500)
    (channel,) = now(worker).channels
    assert (channel.receives_entered, channel.receives_completed, channel.pending) == (1, 0, ())


def test_the_newest_mark_is_the_step(worker: Worker):
    worker.clock.tick(70)
    assert now(worker).step == -1
    worker.ring.mark(41)
    worker.ring.mark(42)
    worker.clock.tick(30)
    record = now(worker)
    assert (record.step, record.step_age_seconds) == (42, pytest.approx(0.030))


def test_a_group_made_anew_takes_the_place_of_the_old_one(worker: Worker):
    old = worker.ring.add_communicator("0", WORLD)
    worker.operate(old)
    new = worker.ring.add_communicator("0", WORLD)
    worker.operate(new, Op.BARRIER)
    (collectives,) = now(worker).collectives
    assert collectives.entered == 1
    assert collectives.last is not None
    assert collectives.last.op == Op.BARRIER


def test_many_communicators_keep_their_indices(tmp_path: Path, worker: Worker):
    other = Worker(tmp_path, rank=1)
    for number in range(100):
        worker.operate(worker.ring.add_communicator(str(number), (0, number)))
    other.operate(other.ring.add_communicator("7", (0, 7)))
    other.operate(other.ring.add_communicator("7", (1, 9)))
    reader = CommReader("node0")
    workers = [worker.place, other.place]
    report = reader.read(1, workers, tmp_path)
    assert len(report.communicators) == 101
    assert report.communicators[7] == Communicator("7", (0, 7))
    assert [c.communicator for c in report.ranks[1].collectives] == [7, 100]
    worker.operate(worker.ring.add_communicator("new", (0, 1)))
    again = reader.read(1, workers, tmp_path)
    assert again.communicators[:101] == report.communicators
    assert again.communicators[101] == Communicator("new", (0, 1))


def test_a_group_is_told_with_its_description_unless_torch_made_that_up(tmp_path: Path, worker: Worker):
    reader = CommReader("node0")
    for name, description in (("0", "default_pg"), ("1", "undefined"), ("2", ""), ("3", "mesh_dp")):
        worker.operate(worker.ring.add_communicator(name, WORLD, description))
    report = reader.read(1, [worker.place], tmp_path)
    assert [c.description for c in report.communicators] == ["default_pg", "", "", "mesh_dp"]
    worker.operate(worker.ring.add_communicator("3", WORLD, "mesh_tp"))
    again = reader.read(1, [worker.place], tmp_path)
    assert [c.description for c in again.communicators[3:]] == ["mesh_tp"]
    reader.close()


def test_a_rank_is_idle_since_it_entered_or_left_an_operation(worker: Worker):
    assert now(worker).idle_seconds is None
    world = worker.ring.add_communicator("0", WORLD)
    worker.operate(world)
    worker.clock.tick(40)
    assert now(worker).idle_seconds == pytest.approx(0.040)
    worker.enter(world)
    worker.clock.tick(10)
    assert now(worker).idle_seconds == pytest.approx(0.010)


def test_the_newest_few_are_told_once_while_a_rank_is_late(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()

    def recent() -> list[int]:
        record, _ = reader.report(worker.clock.ns)
        assert record is not None
        return [operation.seq for operation in record.collectives[0].recent]

    for _ in range(20):
        worker.operate(world)
    worker.enter(world)
    assert recent() == []
    worker.clock.tick(300)
    assert recent() == list(range(14, 22))
    worker.clock.tick(300)
    assert recent() == []


# ---- history, steps


def test_what_is_usual_comes_from_the_rings_own_records(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    worker.operate(world, ms=9000, bytes=4096)
    for _ in range(10):
        worker.operate(world, ms=3, bytes=4096)
    worker.enter(world, bytes=4096)
    record, _ = reader.report(worker.clock.ns)
    assert record is not None
    assert record.collectives[0].pending[0].usual_seconds == pytest.approx(0.003)


def test_nothing_is_usual_while_the_first_steps_are_done(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    usual = []
    for step in range(3):
        for _ in range(4):
            worker.operate(world, bytes=4096)
        worker.ring.mark(step)
        entered = worker.enter(world, bytes=4096)
        usual.append(now(worker).collectives[0].pending[0].usual_seconds)
        worker.ring.leave(entered)
    assert usual == [None, None, pytest.approx(0.001)]


def test_one_that_was_pending_counts_when_it_has_completed(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    for ms in (1, 1):
        worker.operate(world, ms=ms)
    entered = worker.enter(world)
    reader.report(worker.clock.ns)
    worker.clock.tick(80)
    worker.ring.leave(entered)
    worker.operate(world, ms=1)
    record, _ = reader.report(worker.clock.ns)
    assert record is not None
    assert record.collectives[0].last is not None
    assert record.collectives[0].last.usual_seconds == pytest.approx(0.080)


def test_failed_operations_are_no_history(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    for _ in range(5):
        worker.ring.leave(worker.enter(world), failed=True)
    (collectives,) = now(worker).collectives
    assert collectives.completed == 5
    assert collectives.last is not None
    assert collectives.last.usual_seconds is None


def test_steps_are_told_once_each(worker: Worker):
    world, pair = worker.ring.add_communicator("0", WORLD), worker.ring.add_communicator("1", (0, 1))
    reader = worker.reader()
    worker.ring.mark(0)
    for step in (1, 2):
        worker.clock.tick(10)
        worker.operate(world, ms=5, bytes=1000)
        worker.operate(world, ms=4, bytes=1000)
        worker.operate(pair, ms=1, bytes=8)
        worker.operate(world, Op.SEND, ms=1, root=1, sends=True)
        worker.ring.mark(step)
    worker.operate(world)
    _, steps = reader.report(worker.clock.ns)
    assert [step.step for step in steps] == [1, 2]
    assert [step.seconds for step in steps] == [pytest.approx(0.021)] * 2
    assert [step.own_seconds for step in steps] == [pytest.approx(0.010)] * 2
    told = [(c.communicator, c.operations, c.bytes) for c in steps[1].collectives]
    assert told == [(0, 2, 2000), (1, 1, 8)]
    assert steps[1].collectives[0].least_seconds == pytest.approx(0.004)
    assert reader.report(worker.clock.ns)[1] == []


def test_what_another_thread_waits_for_in_a_group_of_its_own_the_training_does_not_wait_for(worker: Worker):
    """A checkpoint is written beside the training: rank 0 writes, and the others' threads wait for it in a barrier."""
    world, aside = worker.ring.add_communicator("0", WORLD), worker.ring.add_communicator("1", (0, 1))
    reader = worker.reader()
    worker.ring.mark(0)
    entered: list[Entered] = []

    def wait_aside(communicator: int) -> None:
        entered.append(worker.enter(communicator, Op.BARRIER))

    def own_ms(step: int, *, communicator: int | None = None) -> float:
        if communicator is not None:
            thread = threading.Thread(target=wait_aside, args=(communicator,))
            thread.start()
            thread.join()
        worker.clock.tick(20)
        worker.operate(world, ms=5)
        worker.ring.mark(step)
        ((told,),) = reader.report(worker.clock.ns)[1:]
        return told.own_seconds * 1000

    assert own_ms(1) == pytest.approx(20)
    assert own_ms(2, communicator=aside) == pytest.approx(20)
    assert own_ms(3) == pytest.approx(20), "it is still in there"
    worker.ring.leave(entered.pop())
    assert own_ms(4) == pytest.approx(20)
    assert own_ms(5, communicator=world) == pytest.approx(0), "a hook's callback goes on with what the step has begun"
    worker.ring.leave(entered.pop())
    assert own_ms(6) == pytest.approx(20)


def test_steps_whose_records_were_overwritten_are_not_told(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    worker.ring.mark(0)
    reader.report(worker.clock.ns)
    for _ in range(RECORDS_MAX + 10):
        worker.operate(world, ms=0)
    worker.ring.mark(1)
    worker.operate(world)
    worker.ring.mark(2)
    _, steps = reader.report(worker.clock.ns)
    assert [step.step for step in steps] == [2]


def test_a_look_reads_on_before_records_are_overwritten(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    worker.ring.mark(0)
    for step in range(1, 5):
        for _ in range(RECORDS_MAX // 3):
            worker.operate(world, ms=0)
        worker.ring.mark(step)
        reader.look(worker.clock.ns)
    _, steps = reader.report(worker.clock.ns)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    assert {step.collectives[0].operations for step in steps} == {RECORDS_MAX // 3}


# ---- news


def test_no_news_while_a_rank_moves_or_lasts_no_longer_than_usual(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    for _ in range(10):
        worker.operate(world, ms=400)
        assert not reader.look(worker.clock.ns)
    reader.report(worker.clock.ns)
    worker.enter(world)
    for _ in range(4):
        assert not reader.look(worker.clock.ns)
        worker.clock.tick(99)
    assert not reader.look(worker.clock.ns)
    worker.clock.tick(10)
    assert reader.look(worker.clock.ns)


def test_nothing_is_late_before_it_has_a_history(worker: Worker):
    worker.enter(worker.ring.add_communicator("0", WORLD))
    worker.clock.tick(30_000)
    reader = worker.reader()
    assert not reader.look(worker.clock.ns)
    assert not reader.look(worker.clock.ns)
    assert late_in_seconds(now(worker)) == float("inf")


def test_a_process_that_is_gone_is_news_and_its_ring_is_still_read(tmp_path: Path):
    worker = Worker(tmp_path, pid=PID_NOBODY_HAS)
    worker.enter(worker.ring.add_communicator("0", WORLD))
    reader = worker.reader()
    reader.look(worker.clock.ns)
    assert reader.look(worker.clock.ns)
    record, _ = reader.report(worker.clock.ns)
    assert record is not None
    assert record.process is not None
    assert record.process.letter == ""
    assert len(record.collectives[0].pending) == 1


# ---- whose ring


def test_a_worker_without_a_ring_is_unrecorded_until_it_has_one(tmp_path: Path):
    reader = CommReader("node0")
    place = (0, 0, os.getpid())
    assert reader.read(1, [place], tmp_path).unrecorded == (0,)
    Worker(tmp_path)
    report = reader.read(1, [place], tmp_path)
    assert report.unrecorded == ()
    assert [rank.rank for rank in report.ranks] == [0]


@pytest.mark.parametrize("other", [{"generation": 2}, {"pid": 1}])
def test_another_workers_ring_is_not_used(tmp_path: Path, other: dict[str, int]):
    Worker(tmp_path, **other)
    report = CommReader("node0").read(1, [(0, 0, os.getpid())], tmp_path)
    assert (report.ranks, report.unrecorded) == ((), (0,))


def test_the_next_generations_ring_is_opened_in_its_turn(tmp_path: Path):
    reader = CommReader("node0")
    old = Worker(tmp_path)
    old.operate(old.ring.add_communicator("old", WORLD))
    reader.read(1, [old.place], tmp_path)
    new = Worker(tmp_path, generation=2)
    new.operate(new.ring.add_communicator("new", WORLD))
    report = reader.read(2, [new.place], tmp_path)
    assert report.generation == 2
    assert report.communicators == (Communicator("new", WORLD),)
    reader.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 10_000])
def test_a_file_that_is_no_ring_is_not_read(tmp_path: Path, content: bytes):
    ring_path(tmp_path, 0).write_bytes(content)
    assert CommReader("node0").read(1, [(0, 0, os.getpid())], tmp_path).unrecorded == (0,)


def test_a_rank_in_an_operation_that_the_ring_cannot_tell_is_unrecorded_for_as_long(tmp_path: Path, worker: Worker):
    unknown = worker.ring.add_communicator("mystery", None)
    entered = worker.enter(unknown)
    assert read(tmp_path, worker).unrecorded == (0,)
    worker.ring.leave(entered)
    report = read(tmp_path, worker)
    assert (report.unrecorded, len(report.ranks)) == ((), 1)


def test_more_groups_than_fit_blind_only_while_the_rank_is_in_one(tmp_path: Path, worker: Worker):
    numbers = [worker.ring.add_communicator(str(n), (0, n + 1)) for n in range(130)]
    assert numbers[-1] == -1
    entered = worker.enter(-1)
    assert read(tmp_path, worker).unrecorded == (0,)
    worker.ring.leave(entered)
    assert read(tmp_path, worker).unrecorded == ()


def test_a_record_that_is_being_written_is_left_for_the_next_time(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD)
    reader = worker.reader()
    worker.operate(world)
    worker.operate(world, ms=7)
    ring = worker.ring
    at = ring._layout.records + 2 * 128
    whole = ring._map[at : at + 8]
    ring._map[at : at + 8] = bytes(8)
    reader.report(worker.clock.ns)
    ring._map[at : at + 8] = whole
    worker.operate(world)
    record, _ = reader.report(worker.clock.ns)
    assert record is not None
    assert record.collectives[0].last is not None
    assert record.collectives[0].last.usual_seconds == pytest.approx(0.007)


# ---- the Python writer writes what the reader of arrays reads


def test_both_readers_see_the_same(worker: Worker):
    world = worker.ring.add_communicator("0", WORLD, "default")
    worker.operate(world, bytes=12, elements=3, dtype=6)
    worker.enter(world, Op.SEND, root=2, tag=5, sends=True)
    worker.ring.mark(0)
    worker.ring.close()
    ring = RingReader(worker.path)
    live = ring.live()
    assert (live.head, live.marks, live.communicators, live.channels, live.inside, live.closed) == (2, 1, 1, 1, 1, 1)
    assert ring.groups(1)[0] == ("0", "default", WORLD)
    first, second = ring.records(0, live.head)
    assert (first["seq"], first["bytes"], first["channel"]) == (1, 12, NONE)
    assert (second["seq"], second["root"], second["tag"], second["channel"]) == (1, 2, 5, 0)
    assert ring.marks(0, 1)["head"].tolist() == [2]
    entries, recent = ring.collectives(1)
    assert (entries["entered"][0], entries["completed"][0]) == (1, 1)
    assert recent[0, 1]["id"] == 1
    ring.close()
