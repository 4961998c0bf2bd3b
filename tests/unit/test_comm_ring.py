"""ftrain.comm.ring: what a writer puts into it, a reader finds; what is torn or overwritten is left out."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from ftrain.comm import ring
from ftrain.comm.ring import NATIVE, Identity, Layout, RingInvalid, RingReader
from ftrain.comm.writer import Call, RingWriter

IDENTITY = Identity(NATIVE, 17, 3, 1, 4, 2)
ALL_REDUCE, SEND, RECEIVE = 1, 18, 19


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return ring.ring_path(tmp_path, 1)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[offset : offset + len(data)] = data


def test_a_fresh_ring_tells_whose_it_is_and_is_empty(path: Path) -> None:
    os.close(ring.create_ring(path, IDENTITY))
    reader = RingReader(path)
    live = reader.live()
    assert (path.name, reader.identity) == ("comm.1", IDENTITY)
    assert (live.head, live.marks, live.communicators, live.channels) == (0, 0, 0, 0)
    assert live.last_exit_ns == reader.started_ns > 0
    assert len(reader.records(0, 0)) == len(reader.marks(0, 0)) == len(reader.collectives(0)[0]) == 0


def test_a_ring_is_the_users_alone_and_takes_the_place_of_an_old_one(path: Path) -> None:
    path.write_text("old")
    old = path.open()
    os.close(ring.create_ring(path, IDENTITY))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert old.read() == "old"
    old.close()


def test_the_memory_is_there_from_the_beginning_and_moderate(path: Path) -> None:
    os.close(ring.create_ring(path, IDENTITY))
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert path.stat().st_size < 1 << 20


def test_without_room_there_is_no_ring(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        ring.create_ring(path, IDENTITY)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"FTRNCOMM", bytes(1 << 20)])
def test_what_is_no_ring_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RingInvalid, match="not a ring"):
        RingReader(path)


def test_an_operation_is_pending_until_it_is_left(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    group = writer.add_communicator("dp", (3, 1), "of data")
    done = writer.enter(Call(communicator=group, op=ALL_REDUCE, bytes=64, elements=16, dtype=6))
    writer.leave(done)
    writer.mark(40)
    failed = writer.enter(Call(communicator=group, op=ALL_REDUCE))
    writer.leave(failed, failed=True)
    writer.enter(Call(communicator=group, op=ALL_REDUCE, root=3))
    reader = RingReader(path)
    live = reader.live()
    counts, recent = reader.collectives(live.communicators)
    records = reader.records(0, live.head)
    assert reader.groups(1) == [ring.Group("dp", "of data", (3, 1))]
    assert counts[["entered", "completed", "failed"]].tolist() == [(3, 2, 1)]
    assert records[["id", "seq", "bytes", "dtype", "root", "step"]].tolist() == [
        (1, 1, 64, 6, -1, -1), (2, 2, 0, 65535, -1, 40), (3, 3, 0, 65535, 3, 40)
    ]  # fmt: skip
    assert ring.is_pending(records).tolist() == [False, False, True]
    assert ring.is_failed(records).tolist() == [False, True, False]
    assert (ring.exit_ns(records) >= records["enter_ns"])[:2].all()
    assert sorted(recent[0]["id"].tolist()) == [0, 0, 0, 0, 0, 1, 2, 3]
    assert (live.failed, live.inside, live.head) == (1, 1, 3)
    assert reader.marks(0, live.marks)[["step", "head"]].tolist() == [(40, 1)]


def test_sends_and_receives_are_counted_by_peer(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    group = writer.add_communicator("pp", (0, 1, 2, 3))
    writer.leave(writer.enter(Call(communicator=group, op=SEND, root=2, sends=True)))
    writer.enter(Call(communicator=group, op=RECEIVE, root=2, sends=False))
    writer.enter(Call(communicator=group, op=RECEIVE, root=0, sends=False))
    reader = RingReader(path)
    channels, recent = reader.channels(reader.live().channels)
    assert channels.tolist() == [(0, 2, 1, 1, 1, 0, 0, 0, 0), (0, 0, 0, 0, 1, 0, 0, 0, 0)]
    assert recent["op"][0, 1] == SEND
    assert ring.is_pending(recent)[0].nonzero()[0].tolist() == [5]


def test_a_pending_operation_is_found_after_the_ring_has_wrapped(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    group = writer.add_communicator("dp", (0, 1))
    writer.enter(Call(communicator=group, op=ALL_REDUCE, bytes=8))
    for _ in range(ring.RECORDS_MAX + 10):
        writer.leave(writer.enter(Call(communicator=group, op=ALL_REDUCE)))
    reader = RingReader(path)
    live = reader.live()
    records, (_, recent) = reader.records(0, live.head), reader.collectives(1)
    assert records["id"].tolist() == list(range(live.head - ring.RECORDS_MAX + 1, live.head + 1))
    assert recent[ring.is_pending(recent)][["id", "seq", "bytes"]].tolist() == [(1, 1, 8)]
    assert live.missed_pending == (ring.RECORDS_MAX + 10) // ring.RECENT


def test_what_does_not_fit_is_counted_and_the_records_go_on(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    groups = [writer.add_communicator(str(n), (0, 1)) for n in range(ring.COMMUNICATORS_MAX + 1)]
    assert groups[-1] == -1
    writer.enter(Call(communicator=-1, op=ALL_REDUCE))
    for peer in range(ring.CHANNELS_MAX + 2):
        writer.enter(Call(communicator=0, op=SEND, root=peer, sends=True))
    live = RingReader(path).live()
    assert (live.missed_communicators, live.missed_channels) == (1, 2)
    assert len(RingReader(path).records(0, live.head)) == ring.CHANNELS_MAX + 3


def test_members_that_do_not_fit_are_unknown(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    writer.add_communicator("all", tuple(range(4000)))
    writer.add_communicator("more", tuple(range(100)))
    reader = RingReader(path)
    assert [group.members is None for group in reader.groups(2)] == [False, True]
    assert reader.live().missed_members == 1


def test_a_record_under_the_pen_ends_what_is_read(path: Path) -> None:
    """Given that the writer was stopped within its second record, the later ones are not read yet."""
    writer = RingWriter(path, IDENTITY)
    group = writer.add_communicator("dp", (0, 1))
    for _ in range(3):
        writer.enter(Call(communicator=group, op=ALL_REDUCE))
    reader = RingReader(path)
    overwrite(path, Layout.of(4096).records + 2 * ring.RECORD.itemsize, bytes(8))
    assert reader.records(0, 3)["id"].tolist() == [1]
    overwrite(path, Layout.of(4096).recent + 2 * ring.RECORD.itemsize, bytes(8))
    assert sorted(reader.collectives(1)[1]["id"][0].tolist()) == [0, 0, 0, 0, 0, 0, 1, 3]


def test_marks_wrap_as_well(path: Path) -> None:
    writer = RingWriter(path, IDENTITY)
    for step in range(ring.MARKS_MAX + 5):
        writer.mark(step)
    reader = RingReader(path)
    marks = reader.marks(0, reader.live().marks)
    assert marks["step"].tolist() == list(range(5, ring.MARKS_MAX + 5))
    assert (np.diff(marks["at_ns"].astype(np.int64)) >= 0).all()


def test_the_last_members_of_the_file_are_those_that_the_layout_says(path: Path) -> None:
    fd = ring.create_ring(path, IDENTITY._replace(world_size=1000))
    os.close(fd)
    assert path.stat().st_size == Layout.of(8000).end
