"""The journal is written by a thread: a disk may stand still for seconds, and nobody is to be missed meanwhile.

    event -> take() -> lines that wait -> thread: write, sync -> on_disk() -> followers, commands (`followers.py`)

There is one thread, so that lines keep their order; all that came while it was at work are written and synced at once.
A disk that is full is one that stands still: it is tried again. One that is broken ends the controller, which the
launcher starts again.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ftrain_launcher.control.journal import UNSYNCED, Entry, Journal, encode
from ftrain_launcher.job.events import Event
from ftrain_launcher.terminal import announce

STANDSTILL_SECONDS = 1.5
"""A pause that is longer counts for nobody."""
_AGAIN_SECONDS = 1.0
"""Between attempts to write to a disk that is full."""
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Writing:
    """One controller's; `run` is its owner's to start, and ends after `close`."""

    def __init__(self, journal: Journal, on_disk: Callable[[bytes, float], None]) -> None:
        """``on_disk`` hears of lines once they are written down, and synced if a decision rests on them; and for how
        many seconds the first of them had waited.
        """
        self._journal, self._on_disk = journal, on_disk
        self.length = journal.length
        """How many bytes the journal has with the lines that wait."""
        self._lines: list[bytes] = []
        self._sync = self._closed = False
        self._since: float | None = None
        """When the oldest line came that is not on the disk (monotonic)."""
        self._came = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    @property
    def stands_still_seconds(self) -> float:
        """For how long the oldest line has been waiting."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def take(self, event: Event, now: float) -> int:
        """Have one event written; how long the journal is with it."""
        line = encode(Entry(now, event))
        self._lines.append(line)
        self._sync = self._sync or not isinstance(event, UNSYNCED)
        self.length += len(line)
        if self._since is None:
            self._since = time.monotonic()
        self._came.set()
        return self.length

    async def run(self) -> None:
        """Write what comes, until all is written after `close`.

        Raises:
            OSError: the disk is broken.
        """
        try:
            while not self._closed or self._lines:
                await self._came.wait()
                self._came.clear()
                lines, sync = b"".join(self._lines), self._sync
                self._lines, self._sync = [], False
                if lines:
                    await self._write(lines, sync)
        finally:
            self._thread.shutdown()
            self._journal.close()

    async def _write(self, lines: bytes, sync: bool) -> None:
        loop, told = asyncio.get_running_loop(), False
        while True:
            try:
                await loop.run_in_executor(self._thread, lambda: self._journal.append(lines, sync=sync))
                break
            except OSError as error:
                if error.errno not in _FULL or self._closed:
                    raise
                if not told:
                    announce("the journal's disk is full: make room. Training goes on, but nothing else until then")
                    told = True
            await asyncio.sleep(_AGAIN_SECONDS)  # no kernel tells when a disk has room
        waited = self.stands_still_seconds
        self._since = time.monotonic() if self._lines else None
        self._on_disk(lines, waited)

    def close(self) -> None:
        """Take nothing more in."""
        self._closed = True
        self._came.set()
