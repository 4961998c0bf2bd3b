"""The agent's watch over its workers' communication: it reads their rings and tells the controller what they show."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.rings.reader import CommReader

READ_SECONDS = 0.1
REPORT_SECONDS = 0.5
"""Between reports while nothing is late."""


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
        self._folder, self._workers, self._tell = folder, workers, tell

    async def run(self) -> None:
        """Watch for ever."""
        loop = asyncio.get_running_loop()
        told, alarmed = loop.time(), False
        try:
            while True:
                await asyncio.sleep(READ_SECONDS)
                workers = self._workers.running()
                if not workers:
                    continue
                news = self._reader.look(self._workers.generation, workers, self._folder)
                # That all goes on again is as urgent: who waited is taken to wait still until then.
                if news or alarmed or loop.time() - told >= REPORT_SECONDS:
                    told, alarmed = loop.time(), news
                    self._tell(self._reader.report())
        finally:
            self.forget()

    def forget(self) -> None:
        """The workers are gone: their rings' memory is wanted by others."""
        self._reader.close()

    def tell_now(self) -> None:
        """Something happens to the workers: say how they stand before it does."""
        workers = self._workers.running()
        if workers:
            self._tell(self._reader.read(self._workers.generation, workers, self._folder))
