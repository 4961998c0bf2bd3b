"""Probes between two daemons' loops: figures, what cannot be reached, what is silent, and bounds."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from snapshot_lines import SECRET, Bench, bench

from ftrain_snapshot import probe
from ftrain_snapshot.beacons import Beacons
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LinkFigure, Probe, Probed, Reply
from ftrain_snapshot.probe import PIECE_BYTES, Probes
from ftrain_snapshot.probe_line import KEPT_SECONDS
from ftrain_snapshot.tcp_counts import Segments, segments
from ftrain_snapshot.tls import Tls
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Drop, Ping


class Place:
    """A node's probes, and a door at which others' probes are let in."""

    def __init__(self, bench: Bench, tls: Tls | None = None) -> None:
        self.bench = bench
        self.lines = bench.lines(tls=tls)
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.beacons = Beacons(bench.loop, SECRET, *self.sock.getsockname())
        self.probes = Probes(bench.loop, self.lines, self.beacons)
        self.sock.setblocking(False)
        self.silent = False
        self.pings = 0
        bench.loop.watch(self.sock, self._accept)

    def peer(self, position: int = 0, node: str = "there") -> Peer:
        return Peer(position, node, "127.0.0.1", self.sock.getsockname()[1])

    def _accept(self, readable: bool, writable: bool) -> None:
        connection = Connection(self.bench.loop, self.sock.accept()[0], self.lines, dialled=False)

        def first(c, message, body):
            self.pings += 1
            if not self.silent:
                self.probes.adopt(c, message)

        connection.on_message = first

    def measure(
        self, *peers: Peer, burst_bytes: int = 0, count: int = 3, bursts: int = 1, node: str = "here"
    ) -> list[Reply]:
        answers: list[Reply] = []
        self.probes.measure(Probe(node, peers, count, burst_bytes, bursts=bursts), answers.append)
        return answers

    def close(self) -> None:
        self.probes.close()
        self.beacons.close()
        self.bench.loop.forget(self.sock)
        self.sock.close()


@pytest.fixture
def line() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def places(line: Bench) -> Iterator[tuple[Place, Place]]:
    both = Place(line), Place(line)
    yield both
    for place in both:
        place.close()


def figures(line: Bench, answers: list[Reply]) -> tuple[LinkFigure, ...]:
    line.until(lambda: bool(answers))
    (answer,) = answers
    assert isinstance(answer, Probed)
    return answer.figures


def test_a_link_has_its_figures(line, places):
    here, there = places
    (figure,) = figures(line, here.measure(there.peer(4), burst_bytes=3 * PIECE_BYTES))
    assert (figure.destination, figure.failure, figure.heard) == (4, "", False)
    assert figure.rtt_seconds is not None
    assert figure.bytes_per_second is not None
    assert there.lines.usage.received_bytes[-1] == here.lines.usage.sent_bytes[-1] == 3 * PIECE_BYTES
    # The second request finds the connection of the first.
    (again,) = figures(line, here.measure(there.peer(4)))
    assert (again.failure, again.bytes_per_second) == ("", None)
    assert there.pings == 1


def test_there_may_be_several_bursts_and_the_kernel_tells_what_it_sent_and_lost(line, places):
    here, there = places
    for _ in range(2):  # the second counts only what it sent itself
        (figure,) = figures(line, here.measure(there.peer(), burst_bytes=2 * PIECE_BYTES, bursts=3))
        assert figure.bytes_per_second is not None
        assert 0 < figure.sent_segments < 50
        assert figure.lost_segments == 0
    assert here.lines.usage.sent_bytes[-1] == 2 * 3 * 2 * PIECE_BYTES


def test_of_a_connection_that_is_not_tcp_no_segments_are_known():
    unix, other = socket.socketpair()
    with unix, other:
        assert segments(unix) == Segments(0, 0)
    assert Segments(7, 1).since(Segments(5, 2)) == Segments(2, 0)


def test_who_does_not_listen_or_does_not_answer_is_told_of_and_holds_up_nobody(line, places):
    here, there = places
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    silent = Place(line)
    silent.silent = True
    peers = (Peer(0, "gone", "127.0.0.1", port), silent.peer(1), there.peer(2), Peer(3, "odd", "\0", 1))
    answers = here.measure(*peers, burst_bytes=1)
    line.until(lambda: silent.pings == 1 and there.pings == 1)
    line.turns(20)
    assert not answers
    line.now += 1.1
    gone, mute, sound, odd = figures(line, answers)
    assert "refused" in gone.failure
    assert mute.failure == "no answer within 1 s"
    assert (sound.failure, sound.rtt_seconds) == ("", 0.0)
    assert sound.bytes_per_second is not None
    assert odd.failure
    # What hangs is hung up: a later probe dials anew.
    silent.silent = False
    (now,) = figures(line, here.measure(silent.peer(1)))
    assert now.failure == ""
    silent.close()


def test_who_is_heard_and_does_not_answer_is_told_of_as_heard(line, places):
    """As over a link that is cut one way: there answers nothing, and sends beacons while it measures itself."""
    here, there = places
    there.silent = True
    answers = here.measure(there.peer())
    line.until(lambda: there.pings == 1)
    back = there.measure(Peer(0, "here", *here.sock.getsockname()), node="there")
    line.until(lambda: here.beacons.heard_since("there", 0.0))
    line.now += 1.1
    (figure,) = figures(line, answers)
    assert (figure.failure, figure.heard) == ("no answer within 1 s", True)
    figures(line, back)
    line.turns(5)
    # Beacons of earlier measurements do not count.
    line.now += 1
    again = here.measure(there.peer())
    line.until(lambda: there.pings == 2)
    line.now += 1.1
    (figure,) = figures(line, again)
    assert (figure.failure, figure.heard) == ("no answer within 1 s", False)
    line.turns(5)  # it hears that it was hung up


def test_nothing_is_asked_and_answered_at_once(line, places):
    assert figures(line, places[0].measure()) == ()


def test_no_burst_goes_out_while_somebody_waits_for_bytes_to_be_restored(line, places):
    here, there = places
    here.lines.set_urgent(line.turns, True)
    (figure,) = figures(line, here.measure(there.peer(), burst_bytes=1))
    assert (figure.failure, figure.bytes_per_second) == ("", None)


def test_a_connection_for_probes_is_for_nothing_else_and_their_number_is_bounded(line, places, monkeypatch):
    here, _ = places
    made = [line.pair() for _ in range(3)]
    line.until(lambda: all(end.connection.proved for pair in made for end in pair))
    monkeypatch.setattr(probe, "PROBERS_MAX", 2)
    for _, end in made:
        here.probes.adopt(end.connection, Ping(1))
    assert [end.connection.closed for _, end in made] == [True, False, False]
    with pytest.raises(ProtocolError):
        made[1][1].connection.on_message(made[1][1].connection, Drop, memoryview(b""))


def test_a_connection_that_nobody_uses_is_closed(line, places):
    here, there = places
    figures(line, here.measure(there.peer()))
    assert here.probes._kept
    line.now += KEPT_SECONDS + 1
    line.turns(2)
    assert not here.probes._kept
