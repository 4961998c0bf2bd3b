"""An agent's ear for its workers: the unix socket to which `ftrain.link` speaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ftrain.link import Hello, LinkMessage, Stays, ToWorker
from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.frames import FrameReader, bind_unix, encode_frame

_decode = msgspec.msgpack.Decoder(LinkMessage).decode

SOCKET_NAME = "agent.sock"


class LinkServer:
    """Calls ``hear(hello, message)`` for each message of a worker, in order; and speaks to those that stay."""

    def __init__(self, node_folder: Path, hear: Callable[[Hello, LinkMessage], None]) -> None:
        self._path = node_folder / SOCKET_NAME
        self._hear = hear
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: dict[int, asyncio.StreamWriter] = {}
        """By pid, of those that have said that they stay."""

    async def start(self) -> None:
        """Listen; a socket left by an agent before is replaced."""
        self._server = await asyncio.start_unix_server(self._serve, sock=bind_unix(self._path))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        frames = FrameReader(reader)
        hello: LinkMessage | None = None
        try:
            hello = _decode(await frames.read())
            while isinstance(hello, Hello):
                message = _decode(await frames.read())
                if isinstance(message, Stays):
                    self._lines[hello.pid] = writer
                self._hear(hello, message)
        except (EOFError, ConnectionError, SnapshotError, msgspec.DecodeError):
            pass  # The worker is gone, or speaks nonsense: its process's end tells the rest.
        finally:
            self._tasks.discard(task)
            if isinstance(hello, Hello) and self._lines.get(hello.pid) is writer:
                del self._lines[hello.pid]
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def listens(self, pid: int) -> bool:
        """Whether this worker can be told anything."""
        return pid in self._lines

    def say(self, pid: int, message: ToWorker) -> bool:
        """Tell a worker something; False: it does not listen."""
        writer = self._lines.get(pid)
        if writer is None or writer.is_closing():
            return False
        writer.write(encode_frame(msgspec.msgpack.encode(message)))
        return True

    async def close(self) -> None:
        """Stop listening and drop all workers' lines."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)
