"""The client's side of a zygote's socket, for asyncio, and the ways to get a zygote to connect to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ftrain_launcher.errors import ZygoteFailed
from ftrain_launcher.processes import spawning
from ftrain_launcher.processes.environment import zygote_environment
from ftrain_launcher.processes.output import last_lines
from ftrain_launcher.processes.spawning import Forked, ForkZygote, Ready
from ftrain_snapshot import frames

_CONNECT_POLL_SECONDS = 0.005
"""Between tries while a zygote starts: nothing tells when its socket appears, and this is once per start."""


@dataclass(frozen=True, kw_only=True)
class ZygoteConfig:
    """How a node gets its zygote."""

    socket_path: Path
    log_path: Path
    """Where the zygote's own log goes (appended)."""
    root_socket: Path | None = None
    """A zygote to fork this one from. None, or if that fails: a new process."""
    preload: str = spawning.PRELOAD
    """The module that a new process imports; empty: none (workers should then start by ``exec``)."""
    environment: Mapping[str, str] | None = None
    """What a new process gets, through ``zygote_environment``; None: this process's own."""
    owner_grace_seconds: float = spawning.OWNER_GRACE_SECONDS
    """How long a new process lives on, with its workers, while no agent is connected."""
    start_timeout_seconds: float = 180.0
    """The imports take minutes from a busy shared file system, and on a machine that is busy itself."""

    def command(self) -> list[str]:
        """The command of a new process. ``-P``: the folder it starts in must not shadow any module."""
        preload = ["--preload", self.preload] if self.preload else ["--no-preload"]
        grace = ["--owner-grace-seconds", str(self.owner_grace_seconds)]
        program = [sys.executable, "-P", "-m", "ftrain_launcher.processes.zygote"]
        return [*program, "--socket", str(self.socket_path), *preload, *grace]


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


async def exec_zygote(config: ZygoteConfig) -> ZygoteLine:
    """Start a new zygote process, in a session of its own, and connect to it.

    Raises:
        ZygoteFailed: it ended, most often because an import failed, or took longer than allowed.
    """
    base = os.environ if config.environment is None else config.environment
    command = config.command()
    # Not subprocess: the agent may end while its zygote goes on, and its successor is the one to talk to it.
    pid = os.posix_spawn(
        command[0],
        command,
        zygote_environment(base, preload=bool(config.preload)),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(config.log_path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    ended = ""

    def failure() -> str:
        nonlocal ended
        reaped, status = os.waitpid(pid, os.WNOHANG)
        if reaped:
            last = " | ".join(last_lines(config.log_path, 3))
            ended = f"it ended with {os.waitstatus_to_exitcode(status)}: {last}"
        return ended

    try:
        return await _connect_when_ready(config.socket_path, config.start_timeout_seconds, failure)
    except BaseException:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
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
        await asyncio.sleep(_CONNECT_POLL_SECONDS)
