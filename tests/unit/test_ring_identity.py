"""Whose ring is read, and what is made of one that tells too little."""

import os
from pathlib import Path

import pytest
from unit.ring_worker import WORLD, Worker, read

from ftrain.comm.ring import NONE, RingReader, ring_path
from ftrain_launcher.detect.records import Communicator, Op
from ftrain_launcher.rings.reader import CommReader


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
