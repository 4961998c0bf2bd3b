"""The append-only record of a job: one JSON line an event, written before the event's commands go out.

Replaying it through a fresh coordinator rebuilds the job's state (commands are dropped: they were carried out,
or the agents ask again when they reconnect). Events on which decisions rest are synced to the disk; progress is
not, since the next heartbeat brings it again. A line cut short by a crash is the last one, and is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.errors import JournalDamaged
from ftrain_launcher.events import Event, JobStarted, Progress
from ftrain_launcher.messages import RankRestored, RankStepped

_UNSYNCED = (Progress, RankRestored, RankStepped)


class Entry(msgspec.Struct, frozen=True):
    """One line of a journal."""

    now: float
    """Unix seconds."""
    event: Event


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)


class Journal:
    """Appends entries; the controller owns it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115
        os.chmod(path, 0o600)
        whole = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(whole)

    def append(self, event: Event, now: float) -> None:
        """Write one entry, and sync it if a decision may rest on it."""
        self._file.write(_encoder.encode(Entry(now, event)) + b"\n")
        if not isinstance(event, _UNSYNCED):
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Iterator[Entry]:
    """The entries of a journal, in order.

    Raises:
        JournalDamaged: a line other than the last cannot be read.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield _decoder.decode(line)
        except msgspec.DecodeError as error:
            if number == len(lines):
                return
            raise JournalDamaged(path, number, str(error)) from error


def replay(path: Path) -> Coordinator:
    """Rebuild the coordinator that wrote this journal.

    Raises:
        JournalDamaged: the journal is empty or a line cannot be read.
    """
    entries = read(path)
    first = next(entries, None)
    if first is None or not isinstance(first.event, JobStarted):
        raise JournalDamaged(path, 1, "it does not begin with the job's start")
    coordinator = Coordinator(first.event.config)
    coordinator.handle(first.event, first.now)
    for entry in entries:
        coordinator.handle(entry.event, entry.now)
    return coordinator



