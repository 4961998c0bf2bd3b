"""A journal whose disk takes its time: lines keep their order, and nobody waits but what follows from them."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest
from unit.coordinator_job import config

from ftrain_launcher.control import writing
from ftrain_launcher.control.followers import Followers
from ftrain_launcher.control.journal import Journal, read
from ftrain_launcher.control.writing import Writing
from ftrain_launcher.job.events import Announce, Command, Event, JobStarted, Progress, Tick

START = JobStarted(config())


class Disk(Journal):
    """A journal on a disk that stands still until it is told to go on, or fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.goes_on, self.asked = threading.Event(), asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.writes: list[tuple[int, bool]] = []
        self.failures: list[OSError] = []

    def append(self, lines: bytes, *, sync: bool) -> None:
        self.loop.call_soon_threadsafe(self.asked.set)
        self.goes_on.wait(10.0)
        if self.failures:
            raise self.failures.pop()
        self.writes.append((lines.count(b"\n"), sync))
        super().append(lines, sync=sync)


class Shell:
    """What a controller does with its events, without a coordinator."""

    def __init__(self, path: Path) -> None:
        self.disk, self.done = Disk(path), list[Command]()
        self.followers = Followers(self.disk, self.done.append)
        self.waited = list[float]()
        self.writing = Writing(self.disk, self._on_disk)
        self.task = asyncio.create_task(self.writing.run())

    def _on_disk(self, lines: bytes, seconds: float) -> None:
        self.waited.append(seconds)
        self.followers.take(lines, 0.0)

    def submit(self, event: Event, *texts: str) -> int:
        length = self.writing.take(event, 1.0)
        self.followers.hold(length, [Announce(text) for text in texts], 0.0)
        return length

    @property
    def said(self) -> list[str]:
        return [command.text for command in self.done if isinstance(command, Announce)]

    async def close(self) -> None:
        self.disk.goes_on.set()
        self.writing.close()
        await self.task


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_what_follows_waits_for_the_disk_and_all_that_came_meanwhile_is_written_at_once(path: Path) -> None:
    async def run() -> None:
        shell = Shell(path)
        shell.submit(START, "one")
        await shell.disk.asked.wait()
        shell.submit(Tick(), "two", "three")
        length = shell.submit(Progress(1, 5, 4), "four")
        known = asyncio.create_task(shell.followers.wait_known(length))
        await asyncio.sleep(0)
        assert (shell.said, shell.followers.written, known.done()) == ([], 0, False)
        assert shell.writing.stands_still_seconds > 0.0
        shell.disk.goes_on.set()
        await known
        assert shell.said == ["one", "two", "three", "four"]
        assert (shell.followers.written, shell.writing.stands_still_seconds) == (length, 0.0)
        assert shell.disk.writes == [(1, True), (2, True)]
        assert len(shell.waited) == 2
        await shell.close()

    asyncio.run(run())
    assert [type(entry.event) for entry in read(path)] == [JobStarted, Tick, Progress]


def test_only_decisions_are_synced(path: Path) -> None:
    async def run() -> None:
        shell = Shell(path)
        shell.disk.goes_on.set()
        for event in (START, Progress(1, 5, 4), Tick()):
            await shell.followers.wait_known(shell.submit(event))
        assert shell.disk.writes == [(1, True), (1, False), (1, True)]
        await shell.close()

    asyncio.run(run())


def test_what_was_taken_in_before_the_end_is_written(path: Path) -> None:
    async def run() -> None:
        shell = Shell(path)
        shell.submit(START)
        shell.submit(Tick())
        await shell.close()

    asyncio.run(run())
    assert len(list(read(path))) == 2


def test_a_full_disk_is_tried_again_and_people_are_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writing, "_AGAIN_SECONDS", 0.0)

    async def run() -> None:
        shell = Shell(path)
        shell.disk.failures = [OSError(errno.ENOSPC, "No space left on device") for _ in range(3)]
        shell.disk.goes_on.set()
        await shell.followers.wait_known(shell.submit(START, "one"))
        assert shell.said == ["one"]
        await shell.close()

    asyncio.run(run())
    assert "".join(capfd.readouterr()).count("disk is full: make room") == 1


def test_a_broken_disk_ends_the_controller_and_nothing_follows(path: Path) -> None:
    async def run() -> None:
        shell = Shell(path)
        shell.disk.failures = [OSError(errno.EIO, "Input/output error")]
        shell.disk.goes_on.set()
        shell.submit(START, "one")
        with pytest.raises(OSError, match="Input/output"):
            await shell.task
        assert shell.said == []

    asyncio.run(run())
