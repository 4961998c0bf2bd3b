"""The controller's side of the journal's copies: it streams its lines, and lets commands wait for them (`copies.py`).

Followers are sent what is on the controller's own disk: no copy ever knows more than the journal.

follower    Follow(candidate, length, digest)   what it has already
controller  Lines(at, data) ...                 from there, or from the beginning, and then as they are written
follower    Have(length)                        it is on its disk
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence

import msgspec
from aiohttp import WSMsgType, web

from ftrain_launcher.control.copies import Copies
from ftrain_launcher.control.journal import Journal
from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.job.events import Command

_CHUNK_BYTES = 1 << 20
_WATCH_SECONDS = 0.1


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """First on the line."""

    candidate: int
    length: int
    digest: bytes
    """SHA-256 of so many bytes of a copy."""


class Have(msgspec.Struct, frozen=True, tag="have"):
    """So many bytes are on the follower's disk."""

    length: int


class Lines(msgspec.Struct, frozen=True, tag="lines"):
    """Part of the journal."""

    at: int
    data: bytes
    whole: int = 0
    """In the first: how long it is by now."""


_decode = msgspec.msgpack.Decoder(Follow | Have).decode


def digest(data: bytes) -> bytes:
    """By which two journals, or their beginnings, are known to be the same."""
    return hashlib.sha256(data).digest()


def parts(data: bytes, at: int, whole: int) -> list[Lines]:
    """What a follower is sent first."""
    chunks = range(0, len(data), _CHUNK_BYTES)
    return [Lines(at, b"", whole), *(Lines(at + i, data[i : i + _CHUNK_BYTES]) for i in chunks)]


class Followers:
    """One controller's. Without any, commands are carried out once their line is on its own disk."""

    def __init__(self, journal: Journal, carry_out: Callable[[Command], None]) -> None:
        self._journal, self._carry_out = journal, carry_out
        self._copies: Copies[Command | asyncio.Future[None]] = Copies(journal.length)
        self._outboxes: dict[str, Outbox] = {}

    @property
    def written(self) -> int:
        """How many bytes of the journal are on the controller's disk, and on their way to those that follow."""
        return self._copies.written

    def hold(self, length: int, commands: Sequence[Command], now: float) -> None:
        """These follow from what the journal says when it is so long."""
        self._copies.hold(length, commands, now)
        self._release()

    def take(self, lines: bytes, now: float) -> None:
        """Lines are on the controller's disk."""
        for outbox in self._outboxes.values():
            outbox.put(Lines(self.written, lines))
        self._copies.write(self.written + len(lines), now)
        self._release()

    async def wait_known(self, length: int) -> None:
        """Until all that follow have so much of the journal."""
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._copies.hold(length, [known], time.time())
        self._release()
        await known

    def _release(self) -> None:
        for ready in self._copies.ready():
            if not isinstance(ready, asyncio.Future):
                self._carry_out(ready)
            elif not ready.done():  # Who asked may have hung up.
                ready.set_result(None)

    async def keep_watch(self) -> None:
        """Let nobody hold the job up."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            for follower in self._copies.overdue(time.time()):
                self._outboxes[follower].abort()
                self._copies.leave(follower)
            self._release()

    async def serve(self, socket: web.WebSocketResponse, transport: asyncio.Transport | None) -> None:
        """A candidate's line, until it closes."""
        first = await socket.receive(timeout=10.0)
        hello = _decode(first.data) if first.type is WSMsgType.BINARY else None
        if not isinstance(hello, Follow):
            return
        name, outbox = f"{hello.candidate}-{id(socket)}", Outbox(socket, transport)
        begin = hello.length if self._has(hello) else 0
        caught_up = self.written
        for lines in parts(self._journal.part(begin, caught_up), begin, caught_up):
            outbox.put(lines)
        self._outboxes[name] = outbox
        try:
            async for message in socket:
                have = _decode(message.data) if message.type is WSMsgType.BINARY else None
                if isinstance(have, Have) and have.length >= caught_up and name in self._outboxes:
                    self._copies.follow(name, have.length)
                    self._release()
        except (msgspec.DecodeError, ConnectionError):
            pass
        finally:
            del self._outboxes[name]
            self._copies.leave(name)
            self._release()
            await outbox.close()

    def _has(self, hello: Follow) -> bool:
        """Whether a follower's copy is the beginning of this journal."""
        fits = 0 < hello.length <= self.written
        return fits and digest(self._journal.part(0, hello.length)) == hello.digest
