"""Work that goes on beside everything else, and its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


class Background:
    """Keeps what it has begun until that has ended, or until it is closed."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        """Those under way."""

    def begin(self, work: Coroutine[None, None, None]) -> None:
        """Do this beside everything else."""
        self.keep(asyncio.create_task(work))

    def keep(self, task: asyncio.Task[None]) -> None:
        """Own a task that has begun already."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
