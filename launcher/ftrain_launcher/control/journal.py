"""The append-only record of a job: one JSON line an event, written before the event's commands go out.

Replaying it through a fresh coordinator rebuilds the job's state (commands are dropped: they were carried out,
or what they ask for is asked again when agents and engine reconnect). Events on which decisions rest are synced
to the disk; progress is not, since the next heartbeat brings it again. A line that was cut short by a crash is the
last one, and counts as never written: its commands did not go out. A disk may take its time, so that a thread writes
(`writing.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ftrain_launcher.errors import JournalDamaged
from ftrain_launcher.from_agent import RankRestored, RankStepped
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Event, JobStarted, Progress, StoodStill

UNSYNCED = (Progress, RankRestored, RankStepped, StoodStill)
"""Nobody waits until these are on the disk, as far as that is up to the operating system."""


class Entry(msgspec.Struct, frozen=True):
    """One line of a journal."""

    now: float
    """Unix seconds."""
    event: Event


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


def encode(entry: Entry) -> bytes:
    """The entry's line, with its end."""
    return _encoder.encode(entry) + b"\n"


def decode(line: bytes) -> Entry:
    """The entry of a line. Raises msgspec.DecodeError."""
    return _decoder.decode(line)


class Journal:
    """The file, open at its end."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self.length = whole(path.read_bytes())
        """In bytes."""
        os.truncate(self._file, self.length)

    def append(self, lines: bytes, *, sync: bool) -> None:
        """Write whole lines; ``sync``: until they are on the disk.

        Raises:
            OSError: the disk is full, or broken. Nothing of the lines is there then.
        """
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if sync:
                os.fdatasync(self._file)
        except OSError:
            os.truncate(self._file, self.length)
            raise
        self.length += len(lines)

    def part(self, begin: int, end: int) -> bytes:
        """The bytes from one place to another."""
        return os.pread(self._file, end - begin, begin)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def whole(data: bytes) -> int:
    """The length without a last line that was cut short."""
    return data.rfind(b"\n") + 1


def read(path: Path) -> Iterator[Entry]:
    """The entries of a journal, in order.

    Raises:
        JournalDamaged: a line cannot be read; the last one may be cut short.
    """
    data = path.read_bytes()
    for number, line in enumerate(data[: whole(data)].splitlines(), start=1):
        try:
            yield decode(line)
        except msgspec.DecodeError as error:
            raise JournalDamaged(path, number, str(error)) from error


def replay(path: Path) -> Coordinator:
    """Rebuild the coordinator that wrote this journal.

    Raises:
        JournalDamaged: it is empty, a line cannot be read, or it does not begin with the job's start.
    """
    entries = read(path)
    first = next(entries, None)
    if first is None or not isinstance(first.event, JobStarted):
        raise JournalDamaged(path, 1, "it does not begin with the job's start")
    return rebuild(first.event, first.now, entries)


def rebuild(start: JobStarted, now: float, entries: Iterable[Entry]) -> Coordinator:
    """The coordinator after the job's start at ``now`` and these entries."""
    coordinator = Coordinator(start.config)
    coordinator.handle(start, now)
    for entry in entries:
        coordinator.handle(entry.event, entry.now)
    return coordinator
