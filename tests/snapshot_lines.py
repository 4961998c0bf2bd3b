"""Connections between daemons over socket pairs, in one thread, stepped by hand, with a clock that stands still."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.tls import Tls
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Drop, PeerMessage
from ftrain_snapshot.words import SnapshotId

SECRET = b"s" * 32


def note(number: int) -> Drop:
    """A message that says nothing but a number."""
    return Drop(SnapshotId(number, 0, 0))


class End:
    """One end of a connection, and all that happened to it."""

    def __init__(self, bench: Bench, sock: socket.socket, lines: Lines, *, dialled: bool) -> None:
        self.heard: list[tuple[int, int]] = []
        """(number, length of the body) of each message."""
        self.bodies: list[bytes] = []
        self.reason: str | None = None
        self.connection = Connection(bench.loop, sock, lines, dialled=dialled)
        self.connection.on_message = self._on_message
        self.connection.on_closed = self._on_closed

    def _on_message(self, connection: Connection, message: PeerMessage, body: memoryview) -> None:
        assert isinstance(message, Drop)
        self.heard.append((message.snapshot.version, len(body)))
        self.bodies.append(bytes(body[:64]))

    def _on_closed(self, connection: Connection, reason: str) -> None:
        assert self.reason is None, "closed twice"
        self.reason = reason


class Bench:
    """A loop and what hangs on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = Loop(lambda: self.now)
        self._ends: list[End] = []
        self._sockets: list[socket.socket] = []

    def lines(self, secret: bytes = SECRET, tls: Tls | None = None) -> Lines:
        return Lines(self.loop, secret, tls)

    def sockets(self, buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
        """Two connected ends, closed with the bench."""
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
            if buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self._sockets += pair
        return pair

    def end(self, sock: socket.socket, lines: Lines | None = None, *, dialled: bool = False) -> End:
        end = End(self, sock, lines or self.lines(), dialled=dialled)
        self._ends.append(end)
        return end

    def pair(self, dialler: Lines | None = None, acceptor: Lines | None = None, buffer_bytes: int = 0) -> list[End]:
        """Two ends of one connection, the dialler first."""
        left, right = self.sockets(buffer_bytes)
        return [self.end(left, dialler, dialled=True), self.end(right, acceptor)]

    def until(self, condition: Callable[[], bool], turns_max: int = 2000) -> None:
        for _ in range(turns_max):
            if condition():
                return
            self.loop.turn()
        raise AssertionError(f"not within {turns_max} turns")

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.loop.turn()

    def close(self) -> None:
        for end in self._ends:
            end.connection.close("the test is over")
        for sock in self._sockets:
            sock.close()
        self.loop.close()


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench, cleared afterwards."""
    made = Bench()
    try:
        yield made
    finally:
        made.close()
