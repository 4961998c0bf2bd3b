"""Between daemons: who is let in, what goes first, how fast, and how little is kept."""

import socket
import tracemalloc
from collections.abc import Iterator

import pytest
from snapshot_lines import SECRET, Bench, bench, note

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.handshake import Handshake
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.transport import HANDSHAKE_TIMEOUT_SECONDS, Connection
from ftrain_snapshot.usage import Traffic


@pytest.fixture
def line() -> Iterator[Bench]:
    with bench() as made:
        yield made


def proved(*ends) -> bool:
    return all(end.connection.proved for end in ends)


def received(sock: socket.socket) -> bytes:
    """What has come, without waiting; nothing once it is closed."""
    try:
        return sock.recv(1 << 20)
    except (BlockingIOError, ConnectionError):
        return b""


# The challenge.


def test_two_who_know_the_secret_are_proved_to_each_other():
    dialler, acceptor = Handshake(SECRET, dialled=True), Handshake(SECRET, dialled=False)
    assert len(dialler.greeting) == acceptor.needed()
    proof, other = acceptor.feed(dialler.greeting), dialler.feed(acceptor.greeting)
    assert proof is not None
    assert other is not None
    assert len(proof) == dialler.needed()
    assert dialler.feed(proof) is None
    assert acceptor.feed(other) is None


@pytest.mark.parametrize("dialled", [True, False])
def test_a_stranger_is_not(dialled):
    mine, stranger = Handshake(SECRET, dialled=dialled), Handshake(b"guess", dialled=not dialled)
    mine.feed(stranger.greeting)
    proof = stranger.feed(mine.greeting)
    assert proof is not None
    with pytest.raises(ProtocolError, match="secret"):
        mine.feed(proof)


@pytest.mark.parametrize("dialled", [True, False])
def test_a_mirror_is_not(dialled):
    mine = Handshake(SECRET, dialled=dialled)
    with pytest.raises(ProtocolError, match="mirror"):
        mine.feed(mine.greeting)


@pytest.mark.parametrize("dialled", [True, False])
def test_a_proof_of_the_other_role_is_not_taken(dialled):
    """Two diallers (or two acceptors) talked together by somebody between them."""
    one, other = Handshake(SECRET, dialled=dialled), Handshake(SECRET, dialled=dialled)
    proof = other.feed(one.greeting)
    one.feed(other.greeting)
    assert proof is not None
    with pytest.raises(ProtocolError, match="secret"):
        one.feed(proof)


def test_another_protocol_is_refused_at_its_first_bytes():
    with pytest.raises(ProtocolError, match="protocol"):
        Handshake(SECRET, dialled=False).feed(b"GET / HTTP/1.1\r\n".ljust(50))


def test_a_recorded_conversation_cannot_be_replayed(line: Bench):
    # Given a whole conversation of two daemons, recorded by somebody between them.
    left, tap_left = line.sockets()
    tap_right, right = line.sockets()
    dialler, acceptor = line.end(left, dialled=True), line.end(right)
    recorded = b""

    def talk(connection: Connection) -> None:
        for number in range(3):
            connection.send(note(number))
        connection.send_bulk(note(3), memoryview(b"x" * 1000))

    dialler.connection.on_proved = talk
    while len(acceptor.heard) < 4:
        line.turns(1)
        recorded += (data := received(tap_left))
        tap_right.sendall(data)
        tap_left.sendall(received(tap_right))
    # When the dialler's half is played to another acceptor with the same secret.
    player, victim_socket = line.sockets()
    victim = line.end(victim_socket)
    player.sendall(recorded)
    line.until(lambda: victim.reason is not None)
    # Then nothing of it is heard.
    assert "secret" in (victim.reason or "")
    assert victim.heard == []
    assert not victim.connection.proved


def test_who_plays_back_what_it_hears_is_turned_away(line: Bench):
    mirror, sock = line.sockets()
    victim = line.end(sock)
    line.until(lambda: bool(data := received(mirror)) and mirror.send(data) > 0)
    line.until(lambda: victim.reason is not None)
    assert "mirror" in (victim.reason or "")


def test_what_a_peer_sent_before_it_was_lost_is_heard_though_it_is_found_out_by_sending(line: Bench):
    dialler, acceptor = line.pair()
    line.until(lambda: proved(dialler, acceptor))
    for number in range(5):
        acceptor.connection.send(note(number))
    acceptor.connection.send_bulk(note(5), memoryview(b"x" * 1000))
    acceptor.connection.close("killed")
    dialler.connection.send_bulk(note(6), memoryview(b"y" * 1000), urgent=True)
    dialler.connection.send(note(7))
    assert not dialler.connection.closed
    line.until(lambda: dialler.reason is not None)
    assert [number for number, _ in dialler.heard] == [*range(6)]
    assert line.now == 0.0


def test_who_dribbles_bytes_runs_out_of_time(line: Bench):
    drip, sock = line.sockets()
    victim = line.end(sock)
    for byte in Handshake(SECRET, dialled=True).greeting[:20]:
        drip.send(bytes([byte]))
        line.turns(1)
        line.now += HANDSHAKE_TIMEOUT_SECONDS / 15
        if victim.reason is not None:
            break
    assert victim.reason == "it did not prove itself in time"


# What goes first.


def test_messages_and_bytes_arrive_as_they_were_sent(line: Bench):
    dialler, acceptor = line.pair()
    lengths = [0, 1, 63, 64, 65, 70_000, CHUNK_BYTES]
    for number, length in enumerate(lengths):
        dialler.connection.send_bulk(note(number), memoryview(bytes([number]) * length))
    line.until(lambda: len(acceptor.heard) == len(lengths))
    assert acceptor.heard == list(enumerate(lengths))
    assert acceptor.bodies == [bytes([n]) * min(64, length) for n, length in enumerate(lengths)]


def test_urgent_bulk_overtakes_ordinary_and_messages_overtake_both(line: Bench):
    dialler, acceptor = line.pair(buffer_bytes=1 << 16)
    line.until(lambda: proved(dialler, acceptor))
    body = memoryview(bytes(CHUNK_BYTES))
    for number in range(4):
        dialler.connection.send_bulk(note(number), body)
    for number in (10, 11):
        dialler.connection.send_bulk(note(number), body, urgent=True)
    dialler.connection.send(note(20))
    line.until(lambda: len(acceptor.heard) == 7)
    order = [number for number, _ in acceptor.heard]
    assert order == [0, 20, 10, 11, 1, 2, 3]  # the chunk under way is finished first


def test_protecting_waits_on_all_connections_while_one_has_a_restore_to_serve(line: Bench):
    lines = line.lines()
    to_restore, restoring = line.pair(lines, buffer_bytes=1 << 16)
    to_protect, protecting = line.pair(lines, buffer_bytes=1 << 16)
    line.until(lambda: proved(to_restore, restoring, to_protect, protecting))
    body = memoryview(bytes(CHUNK_BYTES))
    for number in range(5):
        to_restore.connection.send_bulk(note(number), body, urgent=True)
    for number in range(5):
        to_protect.connection.send_bulk(note(number), body)
    line.until(lambda: len(restoring.heard) >= 4)
    assert protecting.heard == []
    line.until(lambda: len(protecting.heard) == 5)
    assert lines.usage.sent_bytes == [0, 5 * CHUNK_BYTES, 5 * CHUNK_BYTES, 0]


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_restore_that_is_given_up_holds_up_nobody(line: Bench, how: str):
    lines = line.lines()
    to_restore, restoring = line.pair(lines, buffer_bytes=1 << 16)
    to_protect, protecting = line.pair(lines)
    line.until(lambda: proved(to_restore, restoring, to_protect, protecting))
    restoring.connection.on_message = lambda *_: None
    for number in range(50):
        to_restore.connection.send_bulk(note(number), memoryview(bytes(CHUNK_BYTES)), urgent=True)
    to_protect.connection.send_bulk(note(0), memoryview(b"body"))
    if how == "closed":
        to_restore.connection.close("enough")
    else:
        to_restore.connection.drop_bulk(lambda message: False)
    line.until(lambda: protecting.heard == [(0, 4)])


def test_dropped_bulk_is_not_sent(line: Bench):
    dialler, acceptor = line.pair(buffer_bytes=1 << 16)
    line.until(lambda: proved(dialler, acceptor))
    for number in range(6):
        dialler.connection.send_bulk(note(number), memoryview(bytes(CHUNK_BYTES)))
    dialler.connection.drop_bulk(lambda message: message.snapshot.version % 2 == 0)  # type: ignore[union-attr]
    dialler.connection.send_bulk(note(9), memoryview(b""))
    line.until(lambda: (9, 0) in acceptor.heard)
    assert [number for number, _ in acceptor.heard] == [0, 2, 4, 9]


# How fast.


def test_a_cap_holds_over_all_connections_and_each_gets_its_turn(line: Bench):
    lines = line.lines()
    lines.limit(4 * CHUNK_BYTES)  # a chunk each quarter of a second
    pairs = [line.pair(lines) for _ in range(2)]
    line.until(lambda: all(proved(*pair) for pair in pairs))
    line.now = 100.0
    for dialler, _ in pairs:
        for number in range(5):
            dialler.connection.send_bulk(note(number), memoryview(bytes(CHUNK_BYTES)))
    heard = []
    for _ in range(9):
        line.turns(20)
        heard.append(tuple(len(acceptor.heard) for _, acceptor in pairs))
        line.now += 0.25
    assert heard == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (5, 4)]


def test_a_restore_is_not_capped_and_lifting_the_cap_lets_the_rest_go(line: Bench):
    lines = line.lines()
    lines.limit(1000)
    dialler, acceptor = line.pair(lines)
    line.until(lambda: proved(dialler, acceptor))
    for number in range(3):
        dialler.connection.send_bulk(note(number), memoryview(bytes(5000)))
    line.turns(20)
    assert len(acceptor.heard) == 1
    for number in range(10, 15):
        dialler.connection.send_bulk(note(number), memoryview(bytes(5000)), urgent=True)
    line.until(lambda: len(acceptor.heard) == 6)
    line.turns(20)
    assert len(acceptor.heard) == 6
    lines.limit(0)
    line.until(lambda: len(acceptor.heard) == 8)


# How little is kept.


def test_queued_bulk_is_views_and_receiving_takes_one_buffer(line: Bench):
    dialler, acceptor = line.pair(buffer_bytes=1 << 16)
    line.until(lambda: proved(dialler, acceptor))
    body = memoryview(bytes(CHUNK_BYTES))
    acceptor.connection.on_message = lambda *_: None
    tracemalloc.start()
    try:
        for number in range(200):
            dialler.connection.send_bulk(note(number), body, urgent=number % 2 == 0)
        line.turns(40)
        assert tracemalloc.get_traced_memory()[1] < CHUNK_BYTES / 2
    finally:
        tracemalloc.stop()
    assert len(acceptor.connection._view) <= 2 * CHUNK_BYTES


def test_who_never_reads_what_it_is_told_is_closed(line: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ftrain_snapshot.transport.UNREAD_BYTES_MAX", 1 << 16)
    dialler, acceptor = line.pair(buffer_bytes=1 << 12)
    line.until(lambda: proved(dialler, acceptor))
    line.loop.forget(acceptor.connection._sock)
    for number in range(10_000):
        dialler.connection.send(note(number))
        if dialler.connection.closed:
            break
    line.turns(1)
    assert dialler.reason == "it does not read what it is told"
    assert number < 1500


def test_who_sends_to_one_that_is_gone_hears_of_it_afterwards(line: Bench):
    left, right = line.pair()
    line.until(lambda: proved(left, right))
    right.connection.close("gone")
    for number in range(3):
        left.connection.send(note(number))
        left.connection.send_bulk(note(number), memoryview(b"bytes"))
        assert left.reason is None, "not while something is being told to all"
    line.turns(1)
    assert left.connection.closed
    assert left.reason is not None
    assert "BrokenPipe" in left.reason


def test_and_at_once_if_it_is_replaced_before(line: Bench):
    left, right = line.pair()
    line.until(lambda: proved(left, right))
    right.connection.close("gone")
    left.connection.send(note(1))
    left.connection.close("it has connected anew")
    assert left.reason is not None
    assert "BrokenPipe" in left.reason
    line.turns(1)  # and only once: `End` would say so


def test_what_was_sent_and_received_is_counted_by_what_it_was_for(line: Bench):
    mine, theirs = line.lines(), line.lines()
    dialler, acceptor = line.pair(mine, theirs)
    dialler.connection.send_bulk(note(0), memoryview(bytes(100)))
    dialler.connection.send_bulk(note(1), memoryview(bytes(1000)), urgent=True)
    line.until(lambda: len(acceptor.heard) == 2)
    assert mine.usage.sent_bytes[Traffic.PROTECT] == theirs.usage.received_bytes[Traffic.PROTECT] == 100
    assert mine.usage.sent_bytes[Traffic.RESTORE] == theirs.usage.received_bytes[Traffic.RESTORE] == 1000
    assert mine.usage.cpu_seconds > 0
