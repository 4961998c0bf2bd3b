"""A candidate's copy of a journal: what comes over the line is on disk, replayed, and never half of another one."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from ftrain_launcher.control.followers import Lines, parts
from ftrain_launcher.control.journal import Entry, Journal, encode
from ftrain_launcher.control.journal_copy import JournalCopy
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import ControllerRestarted, Event, HostCame, JobConfig, JobStarted
from ftrain_launcher.work import Work

WORK = Work(
    job="j", argv=("t.py",), folder="/", log_folder="/", nproc_per_node=1, snapshot_every=1, parity=1, max_restarts=1
)
EVENTS: list[Event] = [
    JobStarted(JobConfig(work=WORK, nodes=2, hosts=True, candidates=("a:1", "b:1"))),
    HostCame("one", "h1"),
    HostCame("two", "h2"),
]


def lines(events: list[Event]) -> bytes:
    return b"".join(encode(Entry(float(i), event)) for i, event in enumerate(events))


def take_all(copy: JournalCopy, parts: Iterable[Lines]) -> int:
    """Over one line; how much was there in the end."""

    async def run() -> int:
        try:
            return [await copy.take(part) for part in parts][-1]
        finally:
            await copy.close()

    return asyncio.run(run())


def nodes(copy: JournalCopy) -> list[str]:
    assert isinstance(copy.coordinator, Coordinator)
    return list(copy.coordinator.nodes)


def test_it_is_copied_as_a_whole_and_goes_on_line_by_line(tmp_path: Path) -> None:
    copy, data = JournalCopy(tmp_path / "journal.jsonl"), lines(EVENTS[:2])
    more = Lines(len(data), encode(Entry(2.0, EVENTS[2])))
    assert take_all(copy, parts(data, 0, len(data))) == len(data)
    assert nodes(copy) == ["node-0"]
    assert take_all(copy, [*parts(b"", len(data), len(data)), more]) == len(data) + len(more.data)
    assert nodes(copy) == ["node-0", "node-1"]
    assert (tmp_path / "journal.jsonl").read_bytes() == data + more.data == copy.data()


def test_another_line_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    path, data = tmp_path / "journal.jsonl", lines(EVENTS)
    path.write_bytes(data[:-5])
    copy = JournalCopy(path)
    assert copy.length == len(lines(EVENTS[:2]))
    take_all(copy, parts(data[copy.length :], copy.length, len(data)))
    assert nodes(copy) == ["node-0", "node-1"]
    assert copy.data() == data


def test_another_journal_replaces_it_only_once_it_is_whole(tmp_path: Path) -> None:
    path, other = tmp_path / "journal.jsonl", lines([*EVENTS, ControllerRestarted(2, 0)])
    path.write_bytes(lines(EVENTS[:2]))
    copy = JournalCopy(path)
    take_all(copy, (Lines(0, b"", len(other)), Lines(0, other[:40])))
    assert nodes(copy) == ["node-0"]
    take_all(copy, (Lines(0, b"", len(other)), Lines(0, other[:40]), Lines(40, other[40:])))
    assert copy.coordinator is not None
    assert copy.coordinator.term == 2
    assert path.read_bytes() == other


def test_a_disk_that_stands_still_holds_nobody_up_and_a_line_that_ends_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leads next writes to the same file: nothing may come to it from the line that is closed."""
    path, data = tmp_path / "journal.jsonl", lines(EVENTS[:2])
    path.write_bytes(data)
    goes_on, synced = threading.Event(), list[int]()
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(file) if goes_on.wait(10.0) else None)

    async def run() -> None:
        copy = JournalCopy(path)
        more = Lines(len(data), encode(Entry(2.0, EVENTS[2])), len(data))
        taking = asyncio.create_task(copy.take(more))
        while path.read_bytes() == data:
            await asyncio.sleep(0)
        assert nodes(copy) == ["node-0"]
        taking.cancel()
        closing = asyncio.create_task(copy.close())
        await asyncio.sleep(0)
        assert not closing.done()
        goes_on.set()
        await closing
        assert len(synced) == 1
        assert path.read_bytes() == data + more.data
        assert (nodes(copy), copy.data()) == (["node-0"], data)

    asyncio.run(run())
    assert nodes(JournalCopy(path)) == ["node-0", "node-1"]


def test_a_controller_reads_its_own_journal_in_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    written = lines(EVENTS)
    journal.append(written, sync=True)
    assert journal.length == len(written)
    assert journal.part(3, 40) == written[3:40]
    journal.close()
