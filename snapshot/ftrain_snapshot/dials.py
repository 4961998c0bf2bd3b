"""Connections that one generation opens to other daemons, and opens again whenever they are lost."""

from __future__ import annotations

from collections.abc import Callable

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.transport import Connection, dial
from ftrain_snapshot.wire import PeerMessage, PeerWelcome

REDIAL_SECONDS_MIN, REDIAL_SECONDS_MAX = 0.05, 1.0


class Dials:
    """All that one side of a generation dials. Positions are those of whichever world it is about."""

    def __init__(
        self,
        loop: Loop,
        lines: Lines,
        generation: int,
        *,
        hello: Callable[[Peer], PeerMessage],
        on_welcome: Callable[[int, Connection], None],
        on_closed: Callable[[int, Connection, str], None],
    ) -> None:
        """``hello``: what is said first. ``on_welcome``: the other side serves that generation, too."""
        self._loop, self._lines, self._generation = loop, lines, generation
        self._hello, self._on_welcome, self._on_closed = hello, on_welcome, on_closed
        self._dialling: dict[int, Connection] = {}
        self._timers: dict[int, Timer] = {}
        self._closed = False

    def close(self) -> None:
        """Dial no more; what is connected by now is its owner's."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        for connection in list(self._dialling.values()):
            connection.close("the generation is over")

    def dial(self, peer: Peer, again_seconds: float = REDIAL_SECONDS_MIN) -> None:
        """Connect to it, and whenever that is lost."""

        def on_proved(connection: Connection) -> None:
            connection.send(self._hello(peer))

        def on_message(connection: Connection, message: PeerMessage, body: memoryview) -> None:
            if not isinstance(message, PeerWelcome) or message.generation != self._generation:
                raise ProtocolError("a welcome was due")
            self._dialling.pop(peer.position, None)
            connection.welcomed = True
            self._on_welcome(peer.position, connection)

        def on_closed(connection: Connection, reason: str) -> None:
            self._dialling.pop(peer.position, None)
            self._on_closed(peer.position, connection, reason)
            self._redial(peer, REDIAL_SECONDS_MIN if connection.welcomed else again_seconds)

        try:
            connection = dial(self._loop, peer.host, peer.port, self._lines)
        except (OSError, ValueError) as error:  # no address, or none that can be looked up
            log("dial_failed", peer=peer.position, error=error)
            self._redial(peer, again_seconds)
            return
        connection.on_proved, connection.on_message, connection.on_closed = on_proved, on_message, on_closed
        self._dialling[peer.position] = connection

    def _redial(self, peer: Peer, wait_seconds: float) -> None:
        if not self._closed:
            again = min(2 * wait_seconds, REDIAL_SECONDS_MAX)
            self._timers[peer.position] = self._loop.later(wait_seconds, lambda: self.dial(peer, again))
