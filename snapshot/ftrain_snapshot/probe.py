"""What the link to another node can do, measured now: round trips of small frames, then bursts of larger ones.

Probes have connections of their own (probe_line.py), made when first wanted and kept for a while. So no bulk stands
before a probe, and nodes that are in no generation (spares, or all before the first) can be probed, too. Round trips
are measured to all destinations at once, and beacons go beside them, which are heard over a link that is cut one way
(beacons.py); bursts go to one after the other, and to none while others wait for bytes to be restored. Every wait is
bounded: a destination that is dead, stopped or cut off costs its timeout, and is told of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from statistics import median

from ftrain_snapshot.beacons import Beacons
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LinkFigure, Probe, Probed, Reply
from ftrain_snapshot.probe_line import ProbeLine, Told
from ftrain_snapshot.tcp_counts import Segments
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Echo, PeerMessage, Ping

PROBERS_MAX = 1024
"""Connections on which others probe this node; beyond, the oldest goes."""
PIECE_BYTES = 64 << 10
"""A burst is so many bytes at a time, each with its echo: a slow link has a figure before all is through."""
BEACON_SECONDS = 0.1
"""Between two beacons to who has not answered all round trips."""
_PIECE = memoryview(bytes(PIECE_BYTES))
_NOTHING = memoryview(b"")


class Probes:
    """All probes of one daemon, those that it sends and those that it answers. It outlives generations."""

    def __init__(self, loop: Loop, lines: Lines, beacons: Beacons) -> None:
        self._loop, self._lines = loop, lines
        self.beacons = beacons
        self._kept: dict[tuple[str, int], ProbeLine] = {}
        self._probers: dict[Connection, None] = {}  # in order

    def close(self) -> None:
        """The daemon ends."""
        for line in list(self._kept.values()):
            line.close("the daemon ends")
        for prober in list(self._probers):
            prober.close("the daemon ends")

    # What others send.

    def adopt(self, connection: Connection, first: Ping) -> None:
        """A proved peer probes this node: answer it, now and from now on."""
        self._probers[connection] = None
        connection.on_message = lambda c, message, _: self._echo(c, message)
        connection.on_closed = lambda c, _: self._probers.pop(c, None) and None
        if len(self._probers) > PROBERS_MAX:
            next(iter(self._probers)).close("too many others probe this node")
        self._echo(connection, first)

    def _echo(self, connection: Connection, message: PeerMessage) -> None:
        if not isinstance(message, Ping):
            raise ProtocolError("this connection is for probes")
        connection.send(Echo(message.number))

    # What this node sends.

    def measure(self, request: Probe, answer: Callable[[Reply], None]) -> None:
        """Probe all destinations of the request; it is answered when the last is done."""
        _Measurement(self._loop, self._lines, self, request, answer).begin()

    def ping(self, peer: Peer, body: memoryview, told: Told) -> None:
        """Send one probe."""
        try:
            line = self._kept.get((peer.host, peer.port)) or self._dial(peer)
        except (OSError, ValueError) as error:  # no address, or none that can be looked up
            told(0.0, str(error))
            return
        line.ping(body, told)

    def segments(self, peer: Peer) -> Segments:
        """What TCP has sent there so far, over the connection that stands."""
        line = self._kept.get((peer.host, peer.port))
        return line.segments() if line is not None else Segments()

    def hang_up(self, peer: Peer) -> None:
        """What was sent there will not be answered, or not soon: the next probe dials anew."""
        if (line := self._kept.get((peer.host, peer.port))) is not None:
            line.close("it does not answer")

    def _dial(self, peer: Peer) -> ProbeLine:
        address = peer.host, peer.port

        def on_closed(line: ProbeLine) -> None:
            if self._kept.get(address) is line:
                del self._kept[address]

        line = self._kept[address] = ProbeLine(self._loop, self._lines, peer, on_closed)
        return line


class _Destination:
    """One peer, in one request."""

    def __init__(self, peer: Peer, before: Segments) -> None:
        self.peer = peer
        self.round_trips: list[float] = []
        self.bytes_per_second: float | None = None
        self.bursts = 0
        """Those that are done."""
        self.failure = ""
        self.before = before
        """What TCP had sent before this request."""
        self.segments: Segments | None = None
        """What it sent for it."""


class _Measurement:
    """One request under way."""

    def __init__(
        self, loop: Loop, lines: Lines, probes: Probes, request: Probe, answer: Callable[[Reply], None]
    ) -> None:
        self._loop, self._lines, self._probes = loop, lines, probes
        self._request, self._answer = request, answer
        self._all = [_Destination(peer, probes.segments(peer)) for peer in request.peers]
        self._open = set(self._all)
        """Whose round trips are being measured."""
        self._left: deque[_Destination] = deque()
        """Who is to get a burst."""
        self._bursting: _Destination | None = None
        self._pieces = -(-request.burst_bytes // PIECE_BYTES)

    def begin(self) -> None:
        """Round trips, to all at once."""
        self._asked = self._loop.now()
        self._timer = self._loop.later(self._request.timeout_seconds, self._out_of_time)
        for destination in self._all:
            self._ping(destination)
        self._send_beacons()
        if not self._all:
            self._answer(Probed(()))

    def _send_beacons(self) -> None:
        for destination in self._open:
            self._probes.beacons.send(self._request.node, destination.peer)
        if self._open:
            self._loop.later(BEACON_SECONDS, self._send_beacons)

    def _ping(self, destination: _Destination) -> None:
        self._probes.ping(destination.peer, _NOTHING, partial(self._hear_echo, destination))

    def _hear_echo(self, destination: _Destination, seconds: float, failure: str) -> None:
        if destination not in self._open:
            return
        destination.failure = failure
        if not failure:
            destination.round_trips.append(seconds)
        if failure or len(destination.round_trips) == self._request.count:
            self._close(destination)
        else:
            self._ping(destination)

    def _out_of_time(self) -> None:
        silent = [d for d in self._open if not d.round_trips]
        self._open.clear()
        for destination in silent:
            destination.failure = f"no answer within {self._request.timeout_seconds:g} s"
            self._hang_up(destination)
        self._begin_bursts()

    def _close(self, destination: _Destination) -> None:
        self._open.discard(destination)
        if not self._open:
            self._timer.cancel()
            self._begin_bursts()

    # Bursts, to one after the other.

    def _begin_bursts(self) -> None:
        self._left.extend(d for d in self._all if not d.failure)
        self._burst_to_next()

    def _burst_to_next(self) -> None:
        """Nobody's restore is held up by one."""
        if not self._left or not self._request.burst_bytes or self._lines.urgent:
            self._bursting = None
            self._answer(Probed(tuple(map(self._figure, self._all))))
            return
        self._bursting = self._left.popleft()
        self._timer = self._loop.later(self._request.timeout_seconds, self._cut_short)
        self._burst(self._bursting)

    def _burst(self, destination: _Destination) -> None:
        self._began, self._lasted, self._echoed = self._loop.now(), 0.0, 0
        for _ in range(self._pieces):
            self._probes.ping(destination.peer, _PIECE, partial(self._hear_of_piece, destination))

    def _hear_of_piece(self, destination: _Destination, _: float, failure: str) -> None:
        if destination is not self._bursting:
            return
        destination.failure = failure
        if not failure:
            self._echoed += 1
            self._lasted = self._loop.now() - self._began
            if self._echoed < self._pieces:
                return
            self._note_rate(destination)
            destination.bursts += 1
        if failure or destination.bursts == self._request.bursts:
            self._timer.cancel()
            self._burst_to_next()
        else:
            self._burst(destination)

    def _note_rate(self, destination: _Destination) -> None:
        rate = self._echoed * PIECE_BYTES / max(self._lasted, 1e-9)
        destination.bytes_per_second = max(destination.bytes_per_second or 0.0, rate)

    def _cut_short(self) -> None:
        destination = self._bursting
        assert destination is not None
        if self._echoed and not destination.bursts:
            self._note_rate(destination)
        elif not destination.bursts:
            within = f"within {self._request.timeout_seconds:g} s"
            destination.failure = f"it answers, but {PIECE_BYTES >> 10} KiB did not get through {within}"
        self._bursting = None
        self._hang_up(destination)
        self._burst_to_next()

    def _hang_up(self, destination: _Destination) -> None:
        self._conclude(destination)
        self._probes.hang_up(destination.peer)

    def _conclude(self, destination: _Destination) -> None:
        """Note what is known of the connection, once: while it stands, and others are not yet probed."""
        if destination.segments is None:
            destination.segments = self._probes.segments(destination.peer).since(destination.before)

    def _figure(self, destination: _Destination) -> LinkFigure:
        trips = destination.round_trips
        self._conclude(destination)
        segments = destination.segments or Segments()
        return LinkFigure(
            destination=destination.peer.position,
            rtt_seconds=median(trips) if trips else None,
            least_rtt_seconds=min(trips, default=None),
            bytes_per_second=destination.bytes_per_second,
            failure=destination.failure,
            heard=self._probes.beacons.heard_since(destination.peer.node, self._asked),
            sent_segments=segments.sent,
            lost_segments=segments.lost,
        )
