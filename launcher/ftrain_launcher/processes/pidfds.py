"""A hold on a process that a reused pid cannot betray (pidfd: the end of the process makes it readable)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal


class PidHandle:
    """One process, ours or not. Close it when done."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """True from its end on, reaped or not."""
        return bool(select.select([self._fd], [], [], 0)[0])

    async def wait_ended(self, timeout_seconds: float | None) -> bool:
        """Wait for its end; False: it still runs. One waiter at a time. None: however long it takes."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            async with asyncio.timeout(timeout_seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)
        return True

    def send_signal(self, number: int) -> None:
        """Signal it; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def close(self) -> None:
        """Let go; the process is not touched."""
        os.close(self._fd)
