"""Where other daemons knock: their connections, until they belong to the generation that is served here, or must go.

A peer that is ahead, in a generation that this daemon has not been told of yet, waits here until it has. Who must go
when too many knock is decided in strangers.py.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.strangers import Door
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import OriginHello, PeerHello, PeerMessage, Ping

STRANGER_TIMEOUT_SECONDS = 30.0


@dataclass
class Stranger:
    """One that is connected, and belongs to nothing that is served here yet."""

    turn_away: Timer
    """When its time is up. Cancelled before: it would keep the connection, and the session that it is of, as long."""
    hello: PeerHello | OriginHello | None = None
    """What it has said of itself."""


class PeerDoor:
    """The daemon's TCP socket, and who stands before it."""

    def __init__(
        self,
        loop: Loop,
        lines: Lines,
        listener: socket.socket,
        *,
        adopt: Callable[[Connection, PeerHello | OriginHello], bool],
        on_ping: Callable[[Connection, Ping], None],
    ) -> None:
        """``listener`` is closed with this.

        Args:
            adopt: takes a peer in; False: not yet. Raises ProtocolError if it never will.
            on_ping: takes over a connection that asks for nothing but echoes.
        """
        self._loop, self._lines, self._listener = loop, lines, listener
        self._adopt, self._on_ping = adopt, on_ping
        self._strangers: dict[Connection, Stranger] = {}
        self._door: Door[Connection] = Door()
        listener.setblocking(False)
        loop.watch(listener, self._on_arrival)

    def close(self) -> None:
        """Nobody comes in any more."""
        for connection in list(self._strangers):
            connection.close("the daemon ends")
        self._loop.forget(self._listener)
        self._listener.close()

    def look_again(self) -> None:
        """A generation has begun: those who are ahead may have waited for this one."""
        for connection, stranger in list(self._strangers.items()):
            if stranger.hello is not None:
                self._introduce(connection, stranger.hello)

    def _on_arrival(self, readable: bool, writable: bool) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            connection = Connection(self._loop, sock, self._lines, dialled=False)
            if connection.closed:
                return
            turn_away = self._loop.later(STRANGER_TIMEOUT_SECONDS, lambda: self._turn_away(connection))
            self._strangers[connection] = Stranger(turn_away)
            connection.on_message = self._on_hello
            connection.on_proved = lambda c: self._make_way(self._door.prove(c))
            connection.on_closed = self._on_closed
            self._make_way(self._door.arrive(connection))

    def _make_way(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.close("too many others are at the door")

    def _turn_away(self, connection: Connection) -> None:
        if connection in self._strangers:
            connection.close("its generation did not begin here in time")

    def _on_closed(self, connection: Connection, reason: str) -> None:
        self._leave(connection)
        log("stranger_closed", reason=reason)

    def _on_hello(self, connection: Connection, message: PeerMessage, body: memoryview) -> None:
        stranger = self._strangers.get(connection)
        if stranger is None or stranger.hello is not None:
            raise ProtocolError("one hello was due")
        match message:
            case Ping():
                self._leave(connection)
                self._on_ping(connection, message)
            case PeerHello() | OriginHello():
                stranger.hello = message
                self._introduce(connection, message)
            case _:
                raise ProtocolError("one hello was due")

    def _introduce(self, connection: Connection, hello: PeerHello | OriginHello) -> None:
        """Let a peer in, keep it waiting, or turn it away."""
        try:
            if self._adopt(connection, hello):
                self._leave(connection)
        except ProtocolError as error:
            connection.close(str(error))

    def _leave(self, connection: Connection) -> None:
        """It is no stranger any more."""
        self._door.leave(connection)
        if (stranger := self._strangers.pop(connection, None)) is not None:
            stranger.turn_away.cancel()
