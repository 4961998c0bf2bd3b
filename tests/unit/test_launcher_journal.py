"""The journal: what is written before anything is done, and what a crash may leave of it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from simulation.checkers import state_of
from unit.coordinator_job import WHOLE, Job, config, snapshot

from ftrain_launcher.control.journal import Entry, Journal, encode, read, replay
from ftrain_launcher.errors import JournalDamaged
from ftrain_launcher.job.events import JobStarted, StopJob, Tick


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path, *entries: Entry) -> None:
    journal = Journal(path)
    journal.append(b"".join(map(encode, entries)), sync=True)
    journal.close()


START = Entry(1.0, JobStarted(config()))


def test_entries_come_back_in_order_and_exactly(path: Path) -> None:
    entries = [START, Entry(1.1, Tick()), Entry(0.1 + 0.2, StopJob("enough", 1))]
    write(path, *entries)
    assert list(read(path)) == entries


def test_a_journal_is_continued(path: Path) -> None:
    write(path, START)
    write(path, Entry(2.0, Tick()))
    assert [entry.now for entry in read(path)] == [1.0, 2.0]


def test_only_its_owner_may_read_it(path: Path) -> None:
    write(path, START)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_counts_as_never_written(path: Path, cut: int) -> None:
    write(path, START, Entry(2.0, Tick()))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [entry.now for entry in read(path)] == [1.0]
    write(path, Entry(3.0, Tick()))
    assert [entry.now for entry in read(path)] == [1.0, 3.0]


def test_a_damaged_line_is_named(path: Path) -> None:
    write(path, START, Entry(2.0, Tick()))
    path.write_bytes(path.read_bytes().replace(b'"tick"', b'"tock"'))
    with pytest.raises(JournalDamaged, match="line 2"):
        list(read(path))


@pytest.mark.parametrize("entries", [(), (Entry(1.0, Tick()),)])
def test_without_a_start_there_is_nothing_to_replay(path: Path, entries: tuple[Entry, ...]) -> None:
    write(path, *entries)
    with pytest.raises(JournalDamaged, match="job's start"):
        replay(path)


def test_replaying_rebuilds_the_coordinator(path: Path) -> None:
    job = Job()
    job.run()
    job.lose("node-1")
    job.stop_all({snapshot(3): WHOLE})
    job.step_all(4)
    write(path, *job.entries())
    assert state_of(replay(path)) == state_of(job.coordinator)


def test_a_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:7]))
    write(path, START)
    assert list(read(path)) == [START]


def test_what_a_full_disk_took_of_a_line_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, START)
    real, journal = os.write, Journal(path)

    def full(file: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:-5])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.append(encode(Entry(2.0, Tick())), sync=True)
    monkeypatch.setattr(os, "write", real)
    journal.append(encode(Entry(3.0, Tick())), sync=True)
    journal.close()
    assert [entry.now for entry in read(path)] == [1.0, 3.0]
