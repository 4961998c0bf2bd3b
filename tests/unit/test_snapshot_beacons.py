"""Beacons between two daemons' loops: who is heard, since when, and what is not believed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import msgspec
import pytest
from snapshot_lines import SECRET, Bench, bench

from ftrain_snapshot import beacons
from ftrain_snapshot.beacons import HEARD_MAX, Beacon, Beacons, opened, sealed
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.membership import Peer

HOST = "127.0.0.1"


class Sides:
    """Two daemons' beacons, here's and there's."""

    def __init__(self, line: Bench) -> None:
        self.line = line
        self.here, self.there = Beacons(line.loop, SECRET, HOST, 0), Beacons(line.loop, SECRET, HOST, 0)
        self.peer = Peer(1, "there", HOST, self.there._socket.getsockname()[1])

    def say(self, datagram: bytes) -> None:
        """Anybody sends it there."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anybody:
            anybody.sendto(datagram, (HOST, self.peer.port))
        self.line.turns(3)

    def close(self) -> None:
        self.here.close()
        self.there.close()


@pytest.fixture
def sides() -> Iterator[Sides]:
    with bench() as line:
        made = Sides(line)
        yield made
        made.close()


def test_who_sends_a_beacon_is_heard_and_no_other(sides: Sides) -> None:
    sides.line.now = 5.0
    sides.here.send("here", sides.peer)
    sides.line.until(lambda: sides.there.heard_since("here", 5.0))
    assert not sides.there.heard_since("here", 5.1)
    assert not sides.there.heard_since("other", 0.0)
    assert not sides.here.heard_since("there", 0.0)


def test_what_is_made_up_or_sent_again_or_is_nonsense_is_not_heard(sides: Sides) -> None:
    genuine = sealed(SECRET, Beacon(7, "here"))
    assert opened(SECRET, genuine) == Beacon(7, "here")
    noise = msgspec.msgpack.encode("text")
    for odd in (b"", b"x" * 40, sealed(b"other", Beacon(8, "here")), beacons._proof(SECRET, noise) + noise):
        with pytest.raises(ProtocolError):
            opened(SECRET, odd)
        sides.say(odd)
    assert not sides.there.heard_since("here", 0.0)
    sides.say(genuine)
    assert sides.there.heard_since("here", 0.0)
    sides.line.now = 1.0
    sides.say(genuine)
    sides.say(sealed(SECRET, Beacon(6, "here")))
    assert not sides.there.heard_since("here", 1.0)


def test_of_whom_it_is_known_is_bounded_and_who_was_silent_for_longest_goes(sides: Sides) -> None:
    for node in ("first", "second", "first", *map(str, range(HEARD_MAX - 1))):
        sides.there._hear(Beacon(len(sides.there._heard) + sides.there._heard.get(node, (0, 0))[0] + 1, node))
    assert sides.there.heard_since("first", 0.0)
    assert not sides.there.heard_since("second", 0.0)


def test_where_nothing_can_be_sent_or_the_port_is_taken_nobody_minds(sides: Sides, capsys) -> None:
    for host in ("10.0.0.1", "no-such-host.invalid"):
        sides.here.send("here", Peer(1, "there", host, 1))
    Beacons(sides.line.loop, SECRET, HOST, sides.peer.port).close()
    assert "event=no_beacons" in capsys.readouterr().err
