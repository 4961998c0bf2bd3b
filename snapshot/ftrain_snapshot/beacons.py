"""Datagrams by which a daemon is heard on one direction of a link, whatever becomes of the other.

TCP needs both directions: over a link that is cut one way nothing is answered, no connection can be made, and of one
that stood the kernel sends the same bytes again. So while a link is measured (probe.py), each side also sends beacons,
to the UDP port of the same number, which nobody answers: who hears the other, but is not answered by it, knows
which way is cut.

A beacon is authenticated with the job's secret, and its number is higher than that of all before, so that none can be
made up or sent again. One that is lost means nothing by itself: many are sent. Where UDP does not get through at all,
nobody is heard, and the direction stays unknown.
"""

from __future__ import annotations

import hmac
import socket
import time
from contextlib import suppress

import msgspec

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import decode
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.words import Name

HEARD_MAX = 1024
"""Nodes of which is known when they were heard; beyond, who has been silent for longest is forgotten."""
_PREFIX = b"ftrain-beacon-1\n"
_PROOF_BYTES = 32
_BEACON_BYTES_MAX = 2048
_TURN_BEACONS = 64
"""At most so many are heard before others get their turn."""


class Beacon(msgspec.Struct, frozen=True, array_like=True):
    """What is sent."""

    number: int
    node: Name
    """Who sends it."""


_decoder = msgspec.msgpack.Decoder(Beacon)


def sealed(secret: bytes, beacon: Beacon) -> bytes:
    """The datagram."""
    content = msgspec.msgpack.encode(beacon)
    return _proof(secret, content) + content


def opened(secret: bytes, datagram: bytes) -> Beacon:
    """What was sent. Raises ProtocolError if it is not by who knows the secret."""
    content = datagram[_PROOF_BYTES:]
    if not hmac.compare_digest(datagram[:_PROOF_BYTES], _proof(secret, content)):
        raise ProtocolError("the sender of a beacon does not know the job's secret")
    return decode(_decoder, content)


def _proof(secret: bytes, content: bytes) -> bytes:
    return hmac.digest(secret, _PREFIX + content, "sha256")


class Beacons:
    """Those of one daemon, sent and heard. ``host`` and ``port``: where it listens for TCP."""

    def __init__(self, loop: Loop, secret: bytes, host: str, port: int) -> None:
        self._loop, self._secret = loop, secret
        self._number = time.time_ns()
        """Higher than that of an earlier daemon of this node."""
        self._heard: dict[str, tuple[int, float]] = {}
        """The number of a node's last beacon, and when it came; in order of these times."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            log("no_beacons", reason=str(error))  # another program has that port
        loop.watch(self._socket, lambda readable, writable: self._receive())

    def close(self) -> None:
        """The daemon ends."""
        self._loop.forget(self._socket)
        self._socket.close()

    def send(self, node: str, peer: Peer) -> None:
        """Send one, in the name of ``node``. What cannot be sent is as lost as what does not arrive."""
        self._number += 1
        with suppress(OSError):
            self._socket.sendto(sealed(self._secret, Beacon(self._number, node)), (peer.host, peer.port))

    def heard_since(self, node: str, moment: float) -> bool:
        """Whether one of that node came in at this moment of the loop's clock, or later."""
        return node in self._heard and self._heard[node][1] >= moment

    def _receive(self) -> None:
        with suppress(OSError):  # nothing more has come
            for _ in range(_TURN_BEACONS):
                with suppress(ProtocolError):
                    self._hear(opened(self._secret, self._socket.recv(_BEACON_BYTES_MAX)))

    def _hear(self, beacon: Beacon) -> None:
        number, _ = self._heard.get(beacon.node, (0, 0.0))
        if beacon.number <= number:
            return
        self._heard.pop(beacon.node, None)
        self._heard[beacon.node] = beacon.number, self._loop.now()
        if len(self._heard) > HEARD_MAX:
            del self._heard[next(iter(self._heard))]
