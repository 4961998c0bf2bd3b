"""When a look at a ring is news: nobody moves, and should have by now."""

from pathlib import Path

from unit.ring_worker import PID_NOBODY_HAS, WORLD, Worker, now

from ftrain_launcher.rings.lateness import late_in_seconds


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
