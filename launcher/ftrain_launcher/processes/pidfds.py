"""A hold on a process that a reused pid cannot betray (pidfd: the end of the process makes it readable)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


class PidHandle:
    """One process, ours or not. Close it when done."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError if there is no such process."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

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


async def wait_gone(pid: int) -> None:
    """Wait until this process has ended, however long that takes; at once, if there is none."""
    with contextlib.suppress(ProcessLookupError):
        process = PidHandle(pid)
        try:
            await process.wait_ended(None)
        finally:
            process.close()


class Child:
    """A child of this process, buried in the event loop as soon as it ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit code, or a signal's number with a minus; None: it runs."""
        self._handle = os.pidfd_open(pid)
        loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self._handle, self._bury)

    def _bury(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self._ended.set_result(self.returncode)

    async def wait(self) -> int:
        """Wait for its end; `returncode`."""
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """SIGTERM, if it still runs."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._handle, signal.SIGTERM)
