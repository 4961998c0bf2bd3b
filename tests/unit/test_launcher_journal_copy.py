"""A candidate's copy of a journal: what comes over the line is on disk, replayed, and never half of another one."""

from __future__ import annotations

from pathlib import Path

from ftrain_launcher.control.followers import Lines, parts
from ftrain_launcher.control.journal import Entry, Journal, encode
from ftrain_launcher.control.journal_copy import JournalCopy
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import ControllerRestarted, Event, HostCame, JobConfig, JobStarted
from ftrain_launcher.messages import Work

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


def nodes(copy: JournalCopy) -> list[str]:
    assert isinstance(copy.coordinator, Coordinator)
    return list(copy.coordinator.nodes)


def test_it_is_copied_as_a_whole_and_goes_on_line_by_line(tmp_path: Path) -> None:
    copy, data = JournalCopy(tmp_path / "journal.jsonl"), lines(EVENTS[:2])
    for part in parts(data, 0, len(data)):
        copy.take(part)
    assert nodes(copy) == ["node-0"]
    more = encode(Entry(2.0, EVENTS[2]))
    assert copy.take(Lines(len(data), more)) == len(data) + len(more)
    assert nodes(copy) == ["node-0", "node-1"]
    copy.close()
    assert (tmp_path / "journal.jsonl").read_bytes() == data + more == copy.data()


def test_another_line_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    path, data = tmp_path / "journal.jsonl", lines(EVENTS)
    path.write_bytes(data[:-5])
    copy = JournalCopy(path)
    assert copy.length == len(lines(EVENTS[:2]))
    for part in parts(data[copy.length :], copy.length, len(data)):
        copy.take(part)
    assert nodes(copy) == ["node-0", "node-1"]
    assert copy.data() == data


def test_another_journal_replaces_it_only_once_it_is_whole(tmp_path: Path) -> None:
    path, other = tmp_path / "journal.jsonl", lines([*EVENTS, ControllerRestarted(2, 0)])
    path.write_bytes(lines(EVENTS[:2]))
    copy = JournalCopy(path)
    copy.take(Lines(0, b"", len(other)))
    copy.take(Lines(0, other[:40]))
    copy.close()
    assert nodes(copy) == ["node-0"]
    for part in (Lines(0, b"", len(other)), Lines(0, other[:40]), Lines(40, other[40:])):
        copy.take(part)
    copy.close()
    assert copy.coordinator is not None
    assert copy.coordinator.term == 2
    assert path.read_bytes() == other


def test_a_controller_reads_its_own_journal_in_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    written = lines(EVENTS)
    journal.append(written, sync=True)
    assert journal.length == len(written)
    assert journal.part(3, 40) == written[3:40]
    journal.close()
