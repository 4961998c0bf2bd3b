"""A connection to one other daemon that carries nothing but probes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.tcp_counts import Segments
from ftrain_snapshot.transport import dial
from ftrain_snapshot.wire import Echo, PeerMessage, Ping

KEPT_SECONDS = 150.0
"""How long it is kept after its last probe. Links are measured every minute."""

Told = Callable[[float, str], None]
"""Called once for each probe: how long its echo took in seconds, or why there will be none."""


class ProbeLine:
    """Dialled when it is made; what is sent before the peer has proved itself, goes then."""

    def __init__(self, loop: Loop, lines: Lines, peer: Peer, on_closed: Callable[[ProbeLine], None]) -> None:
        """Raises OSError or ValueError if that cannot even be tried."""
        self._loop, self._on_closed = loop, on_closed
        self._early: list[tuple[Ping, memoryview, Told]] | None = []
        self._waiting: dict[int, tuple[float, Told]] = {}
        self._numbers = count(1)
        self._connection = dial(loop, peer.host, peer.port, lines)
        self._connection.on_proved = lambda _: self._proved()
        self._connection.on_message = lambda _c, message, _body: self._hear(message)
        self._connection.on_closed = lambda _, reason: self._closed(reason)
        self._idle = loop.later(KEPT_SECONDS, lambda: self.close("nobody probes"))

    def ping(self, body: memoryview, told: Told) -> None:
        """Send a probe. ``body`` is counted, not read."""
        self._idle.cancel()
        self._idle = self._loop.later(KEPT_SECONDS, lambda: self.close("nobody probes"))
        probe = Ping(next(self._numbers))
        if self._early is not None:
            self._early.append((probe, body, told))
        else:
            self._send(probe, body, told)

    def segments(self) -> Segments:
        """What was sent and lost on the way to the peer so far."""
        return self._connection.segments()

    def close(self, reason: str) -> None:
        """Hang up; whoever waits is told why."""
        self._connection.close(reason)

    def _send(self, probe: Ping, body: memoryview, told: Told) -> None:
        self._waiting[probe.number] = self._loop.now(), told
        self._connection.send(probe, body)

    def _proved(self) -> None:
        early, self._early = self._early or [], None
        for probe in early:
            self._send(*probe)

    def _hear(self, message: PeerMessage) -> None:
        if not isinstance(message, Echo):
            raise ProtocolError("an echo was due")
        sent, told = self._waiting.pop(message.number, (0.0, None))
        if told is not None:
            told(self._loop.now() - sent, "")

    def _closed(self, reason: str) -> None:
        self._idle.cancel()
        self._on_closed(self)
        lost = [told for _, _, told in self._early or []] + [told for _, told in self._waiting.values()]
        self._early = []
        self._waiting.clear()
        for told in lost:
            told(0.0, reason)
