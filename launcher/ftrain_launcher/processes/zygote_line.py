"""The client's side of a zygote's socket, for asyncio, and the ways to get a zygote to connect to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes import spawning
from ftrain_launcher.processes.output import last_lines
from ftrain_launcher.processes.spawning import Forked, ForkZygote, Ready
from ftrain_launcher.processes.zygote_start import Started, ZygoteConfig, start_zygote
from ftrain_snapshot import frames

ROOT_TIMEOUT_SECONDS = 180.0
"""For the imports of the zygote that emulated nodes share."""
_CONNECT_POLL_SECONDS = 0.005
"""Between looks while a zygote starts: nothing tells when its socket appears, and this is once per start."""


class ZygoteLine:
    """One connection. A zygote lives as long as somebody holds one, so a launcher holds one to its root."""

    def __init__(self, ready: Ready, reader: frames.FrameReader, writer: asyncio.StreamWriter) -> None:
        self.ready = ready
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, path: Path, timeout_seconds: float) -> ZygoteLine:
        """Connect to a zygote that listens.

        Raises:
            FileNotFoundError, ConnectionRefusedError: none listens there.
            ZygoteFailed: it does not answer.
        """
        sock = frames.connect_unix(path, timeout_seconds=1.0)
        sock.setblocking(False)
        stream, writer = await asyncio.open_connection(sock=sock)
        line = cls(Ready(0, "", 0.0, 0), frames.FrameReader(stream), writer)
        try:
            async with asyncio.timeout(timeout_seconds):
                ready = await line.receive()
            if not isinstance(ready, Ready):
                raise ZygoteFailed(f"what listens at {path} is no zygote: it says {ready}")
        except (TimeoutError, EOFError, ConnectionError) as error:
            await line.close()
            raise ZygoteFailed(f"the zygote at {path} does not answer: {error!r}") from error
        except BaseException:
            await line.close()
            raise
        line.ready = ready
        return line

    def send(self, request: spawning.Request) -> None:
        """Send; to a zygote that is gone, nothing."""
        if not self._writer.is_closing():
            self._writer.write(spawning.encode(request))

    async def receive(self) -> spawning.Event:
        """The next event. Raises EOFError, ConnectionError or ProtocolError when the line has ended."""
        event: spawning.Event = spawning.decode_event(await self._reader.read())
        return event

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def fork_zygote(config: ZygoteConfig, root_socket: Path, timeout_seconds: float) -> ZygoteLine:
    """Have a root zygote fork this node's, and connect to it.

    Raises:
        ZygoteFailed: the root is not there, does not answer, or cannot.
    """
    try:
        line = await ZygoteLine.connect(root_socket, timeout_seconds)
    except OSError as error:
        raise ZygoteFailed(f"no root zygote at {root_socket}: {error.strerror}") from error
    try:
        line.send(ForkZygote(str(config.socket_path.absolute()), str(config.log_path.absolute())))
        async with asyncio.timeout(timeout_seconds):
            answer = await line.receive()
    except (TimeoutError, EOFError, ConnectionError) as error:
        raise ZygoteFailed(f"the root zygote at {root_socket} does not answer: {error!r}") from error
    finally:
        await line.close()
    if not isinstance(answer, Forked) or answer.error:
        raise ZygoteFailed(f"the root zygote at {root_socket}: {answer}")
    return await _connect_when_ready(config.socket_path, timeout_seconds, failure=str)


async def wait_for_root(socket: Path) -> None:
    """Emulated nodes start while the one import that they share is going on: its socket appears at its end.

    If it does not, nothing is lost: a node then imports by itself.
    """
    deadline = time.monotonic() + ROOT_TIMEOUT_SECONDS
    while not socket.exists() and time.monotonic() < deadline:
        await asyncio.sleep(_CONNECT_POLL_SECONDS)  # as below


async def exec_zygote(config: ZygoteConfig) -> ZygoteLine:
    """Start a new zygote process and connect to it. Raises ZygoteFailed, as `connect_started`."""
    return await connect_started(start_zygote(config))


async def connect_started(started: Started) -> ZygoteLine:
    """Connect to a zygote that this process has started, once its imports are done.

    Raises:
        ZygoteFailed: it ended, most often because an import failed, or took longer than allowed.
    """
    config = started.config

    def failure() -> str:
        status: int | None = None
        with contextlib.suppress(ChildProcessError):  # a launcher buries its children also elsewhere
            reaped, status = os.waitpid(started.pid, os.WNOHANG)
            if not reaped:
                return ""
        code = "" if status is None else f" with {os.waitstatus_to_exitcode(status)}"
        return f"it ended{code}: {' | '.join(last_lines(config.log_path, 3))}"

    try:
        return await _connect_when_ready(config.socket_path, config.start_timeout_seconds, failure)
    except BaseException:
        started.kill()
        raise


async def _connect_when_ready(path: Path, timeout_seconds: float, failure: Callable[[], str]) -> ZygoteLine:
    """Connect to a zygote that is starting; ``failure`` is asked between tries why it will never listen."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            return await ZygoteLine.connect(path, max(0.1, deadline - time.monotonic()))
        if reason := failure():
            raise ZygoteFailed(f"the zygote for {path} did not start: {reason}")
        if time.monotonic() >= deadline:
            raise ZygoteFailed(f"the zygote for {path} did not start in {timeout_seconds:.0f} s")
        await asyncio.sleep(_CONNECT_POLL_SECONDS)  # nobody tells when a socket is listened to
