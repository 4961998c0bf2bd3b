"""Where a rank is, by its ring: what is pending, what came last, who its groups are."""

from pathlib import Path

import pytest
from unit.ring_worker import WORLD, Worker, now

from ftrain.comm.ring import RECORDS_MAX
from ftrain_launcher.detect.records import Communicator, Op
from ftrain_launcher.rings.reader import CommReader


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
