"""The agent's watch over its workers' communication: it reads their rings and tells the controller what they show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.rings.reader import CommReader
from ftrain_launcher.rings.sent_segments import SegmentsWatch

READ_SECONDS = 0.1
REPORT_SECONDS = 0.5
"""Between reports while nothing is late."""
AWAY_SECONDS = 0.5
"""A pause so much longer than it was meant to be: this process stood still."""


class Standstill:
    """Pure. Where a whole node stands still (a suspended machine, a stopped session), agent and workers wake one
    after the other: whoever wakes first must not take the others for stopped."""

    def __init__(self) -> None:
        self._was_away = False

    def ends(self, paused_seconds: float) -> bool:
        """Whether to wait a moment before the next look. Not twice in a row: in a crowd each pause is long."""
        self._was_away = not self._was_away and paused_seconds >= READ_SECONDS + AWAY_SECONDS
        return self._was_away


class CommWatch:
    """One node's."""

    def __init__(
        self,
        node: str,
        folder: Path,
        workers: NodeWorkers,
        tell: Callable[[NodeReport], None],
    ) -> None:
        self._reader = CommReader(node)
        self._segments = SegmentsWatch()
        self._folder, self._workers, self._tell = folder, workers, tell

    async def run(self) -> None:
        """Watch for ever."""
        loop = asyncio.get_running_loop()
        told, alarmed, standstill = loop.time(), False, Standstill()
        watched, had_workers = 0, False  # the generation whose workers were seen; whether some ran at the last look
        try:
            while True:
                since = loop.time()
                await asyncio.sleep(READ_SECONDS)  # ranks write to shared memory, which wakes nobody
                if standstill.ends(loop.time() - since):
                    continue
                workers = self._workers.running()
                generation = self._workers.generation
                if not workers and generation != watched:
                    continue
                # That all have ended is told again and again: who hears it may have been started since.
                ends, watched, had_workers = had_workers and not workers, generation, bool(workers)
                news = self._reader.look(generation, workers, self._folder)
                # That all goes on again is as urgent: who waited is taken to wait still until then.
                if news or alarmed or ends or loop.time() - told >= REPORT_SECONDS:
                    told, alarmed = loop.time(), news
                    self._tell(msgspec.structs.replace(self._reader.report(), segments=self._segments.read()))
        finally:
            self.forget()
            self._segments.close()

    def forget(self) -> None:
        """The workers are gone: their rings' memory is wanted by others."""
        self._reader.close()

    def tell_now(self) -> None:
        """Something happens to the workers: say how they stand before it does."""
        workers = self._workers.running()
        if workers:
            self._tell(self._reader.read(self._workers.generation, workers, self._folder))
