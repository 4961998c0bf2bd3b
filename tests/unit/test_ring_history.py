"""What the reader of a ring learns from its records: how long operations usually take, what steps spent."""

import threading

import pytest
from unit.ring_worker import WORLD, Worker, now

from ftrain.comm.ring import RECORDS_MAX
from ftrain.comm.writer import Entered
from ftrain_launcher.detect.records import Op


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
