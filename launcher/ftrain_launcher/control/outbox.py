"""One peer's messages, in order: a writer task owns the sending side of its WebSocket."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from aiohttp import web

MESSAGES_MAX = 1000
"""A peer that leaves more than this unread is cut off: it will say how it stands when it comes back."""

_encode = msgspec.msgpack.Encoder().encode


class Outbox:
    """What is to be sent over one WebSocket."""

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.Transport | None = None) -> None:
        self.socket = socket
        self._transport = transport
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=MESSAGES_MAX)
        self._writer = asyncio.create_task(self._write())

    def put(self, message: msgspec.Struct) -> None:
        """Send a message when its turn comes."""
        try:
            self._queue.put_nowait(_encode(message))
        except asyncio.QueueFull:
            self._writer.cancel()

    async def _write(self) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while True:
                    await self.socket.send_bytes(await self._queue.get())
                    self._queue.task_done()
        finally:
            await self.socket.close()

    def abort(self) -> None:
        """Hang up without a word: nobody listens at the other end, so that a farewell would only take time."""
        if self._transport is not None:
            self._transport.abort()

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until all is sent, or the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), timeout_seconds)

    async def close(self) -> None:
        """Send nothing more, and hang up."""
        self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
