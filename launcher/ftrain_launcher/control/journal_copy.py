"""A candidate's copy of the controller's journal: on its disk before it says so, and replayed as it comes.

A journal that is another one than what is here is written beside it, and replaces it once it is whole. As with the
controller's own (`writing.py`), a thread writes: agents that look for a controller are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ftrain_launcher.control.followers import Lines, digest
from ftrain_launcher.control.journal import decode, replay, whole
from ftrain_launcher.errors import JournalDamaged
from ftrain_launcher.job.coordinator import Coordinator


class JournalCopy:
    """``coordinator`` is the one that wrote it; None: there is no copy yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._beside = path, path.with_suffix(".copy")
        self._thread: ThreadPoolExecutor | None = None
        """Writes what comes over the present line, one part after the other."""
        self._file: int | None = None
        self._beside_bytes: int | None = None
        """While another journal is being written beside this one: how long it will be."""
        self._rest = b""
        self.coordinator: Coordinator | None = None
        self.length = 0
        """In bytes, of whole lines."""
        self._load()

    def data(self) -> bytes:
        """All of it."""
        return self._path.read_bytes()[: self.length] if self.length else b""

    def digest(self) -> bytes:
        """By which a controller knows whether this is the beginning of its own."""
        return digest(self.data())

    async def take(self, lines: Lines) -> int:
        """Write down what came; how many bytes of that journal are here now."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-copy")
        loop = asyncio.get_running_loop()
        have = await loop.run_in_executor(self._thread, self._write, lines)
        if self._beside_bytes is None:
            self._replay(lines.data)
        elif have >= self._beside_bytes:
            os.replace(self._beside, self._path)
            self._beside_bytes = None
            self._load()
        return have

    def _write(self, lines: Lines) -> int:
        """In the thread."""
        if self._file is None:
            self._begin(lines)
        assert self._file is not None
        rest = memoryview(lines.data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fdatasync(self._file)
        return lines.at + len(lines.data)

    def _begin(self, lines: Lines) -> None:
        """The first of a line: it goes on where this copy ends, or begins anew."""
        anew = lines.at != self.length or not self.length
        self._beside_bytes = lines.whole if anew else None
        path = self._beside if anew else self._path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.truncate(self._file, lines.at)
        self._rest = b""

    def _replay(self, data: bytes) -> None:
        data = self._rest + data
        end = whole(data)
        self._rest = data[end:]
        for line in data[:end].splitlines():
            entry = decode(line)
            if self.coordinator is not None:
                self.coordinator.handle(entry.event, entry.now)
        self.length += end

    def _load(self) -> None:
        self.coordinator, self.length, self._rest = None, 0, b""
        if self._path.exists():
            try:
                self.length = whole(self._path.read_bytes())
                self.coordinator = replay(self._path) if self.length else None
            except JournalDamaged:  # It is copied again as a whole.
                self.length = 0

    async def close(self) -> None:
        """The line is closed; another may begin. What was being written is on the disk then."""
        if self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()
            self._thread = None

    def _close(self) -> None:
        """In the thread."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
