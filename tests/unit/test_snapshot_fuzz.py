"""Whatever bytes come: the documented error or a message; never another exception, a hang, or memory that grows.

Inputs are noise, or real frames that were cut, flipped, padded or glued together. Everything is stepped by hand in
one thread, so that a hang would be a bound on turns that is exceeded.
"""

from __future__ import annotations

import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_lines import SECRET, Bench, bench

from ftrain_snapshot import messages as m
from ftrain_snapshot import wire as w
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import FrameBuffer, decode, encode_frame
from ftrain_snapshot.handshake import Handshake
from ftrain_snapshot.inventory import Inventory
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    HEADER_BYTES,
    Catalog,
    Header,
    ParityDescriptor,
    State,
    UnitDescriptor,
    read_header,
    write_header,
    write_state,
)
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.peer_frames import HEAD_BYTES_MAX, encode_message, encode_prefix
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.words import SnapshotId

few = settings(max_examples=20, deadline=None, derandomize=True, database=None)

ID = SnapshotId(3, 2, 1)
HEADER = Header(ID, 0, 4, 5000, 70, 11, 12)
UNIT = UnitDescriptor(1, 0, HEADER, bytes(range(64)))
CATALOG = Catalog(ID, 1, [UNIT], [ParityDescriptor(0, 1, "xor", 5000, bytes(8), b"\1")])
MEMBERSHIP = Membership(2, 1, 1, 1, tuple(Peer(i, f"node-{i}", "10.0.0.1", 9000 + i) for i in range(4)), ID)
PEER_MESSAGES: list[w.PeerMessage] = [
    w.PeerHello(2, 1, "node-1", 0),
    w.PeerWelcome(2),
    w.PositionSealed(ID, (1, 2**64 - 1)),
    w.Abandon(ID, "a reason, and a somewhat längerer text"),
    w.Drop(ID),
    w.Describe(UNIT),
    w.FetchFailed(1, "gone"),
    w.Ping(1),
    w.Echo(2**56),
]
REQUESTS: list[m.Request] = [m.ClientHello("agent"), m.Configure(MEMBERSHIP), m.GetStatus(), m.Skip(ID)]
REQUESTS.append(m.Probe("node-0", MEMBERSHIP.peers, 5, 1 << 20))
ANNOUNCED = encode_prefix(bytes(HEAD_BYTES_MAX), CHUNK_BYTES, Traffic.PROTECT)
"""More than will ever come."""
DEEP = b"\x91" * 20_000 + b"\xc0"
NOT_TEXT = b"\xa2\xff\xfe"


def mangled(valid: bytes) -> st.SearchStrategy[bytes]:
    """Noise, or ``valid`` after a few accidents."""

    def accidents(where: list[tuple[float, bytes, str]]) -> bytes:
        data = bytearray(valid)
        for place, piece, kind in where:
            at = int(place * len(data))
            if kind == "cut":
                del data[at:]
            elif kind == "insert":
                data[at:at] = piece
            else:
                data[at : at + len(piece)] = piece
        return bytes(data)

    pieces = st.binary(max_size=6) | st.sampled_from([DEEP, NOT_TEXT, b"\xdd\xff\xff\xff\xff", b"\xff" * 9])
    accident = st.tuples(st.floats(0, 0.999), pieces, st.sampled_from(["cut", "insert", "replace"]))
    return st.binary(max_size=200) | st.lists(accident, min_size=1, max_size=4).map(accidents)


def packed(*values: object) -> st.SearchStrategy[bytes]:
    return st.sampled_from([msgspec.msgpack.encode(value) for value in values]).flatmap(mangled)


@contextmanager
def little_memory(bytes_max: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < bytes_max
    finally:
        tracemalloc.stop()


# Decoders.


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (w.PeerMessage, PEER_MESSAGES),
        (m.Request, REQUESTS),
        (m.Reply, [m.Done(), m.InventoryReply(Inventory()), m.Refused("no")]),
        (Catalog, [CATALOG]),
        (Membership, [MEMBERSHIP]),
    ],
    ids=["peer message", "request", "reply", "catalog", "membership"],
)
@few
@given(data=st.data())
def test_a_decoder_gives_a_message_or_says_that_it_is_none(kind, values, data):
    raw = data.draw(packed(*values))
    with little_memory(1 << 20), suppress(ProtocolError):
        decode(msgspec.msgpack.Decoder(kind), raw)


@pytest.mark.parametrize("accident", [DEEP, NOT_TEXT, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc1"])
def test_nesting_and_text_that_is_none_are_refused_like_the_rest(accident: bytes):
    decoder: msgspec.msgpack.Decoder[w.PeerMessage] = msgspec.msgpack.Decoder(w.PeerMessage)
    with pytest.raises(ProtocolError):
        decode(decoder, b"\x95\xa5hello\x02\x01" + accident + b"\x00")
    with suppress(ProtocolError):  # beyond what the struct knows, text is skipped unread
        decode(decoder, b"\x93\xa7welcome\x01" + accident)


@few
@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5))
def test_a_header_is_whole_or_none(noise, flips):
    page = bytearray(HEADER_BYTES)
    write_header(memoryview(page), HEADER)
    write_state(memoryview(page), State.SEALED)
    assert read_header(memoryview(page)) == (State.SEALED, HEADER)
    magic = bytes(page[:8])
    for at, value in flips:
        page[at] = value
    for candidate in (page, (magic + noise).ljust(HEADER_BYTES), noise.ljust(HEADER_BYTES)):
        state, header = read_header(memoryview(candidate))
        assert header in (None, HEADER)
        assert header is not None or state is State.EMPTY


# Frames on the unix socket.


@few
@given(
    st.lists(st.sampled_from([encode_frame(b"body"), b"\xff" * 4, b"\0" * 4]) | st.binary(max_size=30), max_size=8),
    st.integers(1, 50),
)
def test_a_frame_buffer_keeps_no_more_than_it_was_fed(pieces, step):
    stream, buffer, given_out = b"".join(pieces), FrameBuffer(), 0
    with suppress(ProtocolError):
        for at in range(0, len(stream), step):
            given_out += sum(4 + len(body) for body in buffer.feed(stream[at : at + step]))
            assert given_out + len(buffer._bytes) <= at + step


# Between daemons.


@few
@given(st.binary(min_size=50, max_size=50), st.binary(min_size=32, max_size=32), st.booleans())
def test_a_handshake_proves_nobody_by_chance(greeting, proof, dialled):
    mine = Handshake(SECRET, dialled=dialled)
    with suppress(ProtocolError):
        answer = mine.feed(greeting if greeting[0] % 2 else mine.greeting[:18] + greeting[18:])
        assert answer is not None
        assert len(answer) == 32
        with pytest.raises(ProtocolError):
            mine.feed(proof)


def step_until_idle(line: Bench, connection: Connection) -> None:
    for _ in range(30):
        line.loop.turn()
        if connection.closed:
            return


@few
@given(data=mangled(Handshake(SECRET, dialled=True).greeting + bytes(32)), step=st.integers(1, 200))
def test_a_stranger_gets_nothing_allocated(data, step):
    with bench() as line:
        stranger, sock = line.sockets()
        with little_memory(1 << 18):
            victim = line.end(sock)
            for at in range(0, len(data), step):
                with suppress(OSError):
                    stranger.send(data[at : at + step])
                line.turns(2)
            assert not victim.connection.proved
            assert len(victim.connection._view) <= 256
            assert victim.heard == []


def prove_by_hand(line: Bench, sock: socket.socket) -> None:
    """What a dialler does that knows the secret."""
    handshake = Handshake(SECRET, dialled=True)
    sock.sendall(handshake.greeting)
    line.turns(3)
    answer = sock.recv(4096)
    proof = handshake.feed(answer[:50])
    assert proof is not None
    sock.sendall(proof)
    line.turns(3)


def frames() -> st.SearchStrategy[bytes]:
    """What a peer that has gone mad may send: frames, mangled frames, impossible lengths."""
    whole = [bytes(encode_message(message, 0, Traffic.MESSAGE)) for message in PEER_MESSAGES]
    whole.append(bytes(encode_message(w.Drop(ID), 64, Traffic.RESTORE)) + bytes(64))
    bodies = st.sampled_from([0, 1, 64, CHUNK_BYTES, CHUNK_BYTES + 1, 2**32 - 1])
    # Heads that are none, under prefixes that are right.
    false = st.tuples(packed(*PEER_MESSAGES), bodies).map(lambda f: encode_prefix(f[0], f[1], Traffic.PROTECT) + f[0])
    announced = st.just(ANNOUNCED)
    frame = st.sampled_from(whole)
    return st.lists(frame | frame.flatmap(mangled) | false | announced, min_size=1, max_size=5).map(b"".join)


@few
@given(stream=frames(), step=st.integers(100, 8000))
def test_a_mad_peer_closes_its_own_connection_at_most(stream, step):
    with bench() as line:
        mad, sock = line.sockets()
        victim = line.end(sock)
        victim.connection.on_message = lambda c, message, body: None
        prove_by_hand(line, mad)
        assert victim.connection.proved
        with little_memory(1 << 20):
            for at in range(0, len(stream), step):
                with suppress(OSError):
                    mad.send(stream[at : at + step])
                line.turns(1)
            step_until_idle(line, victim.connection)
        assert len(victim.connection._view) <= HEAD_BYTES_MAX + 2 * CHUNK_BYTES
        mad.close()
        line.until(lambda: victim.reason is not None)


@few
@given(data=st.data())
def test_what_is_flipped_on_the_way_is_noticed(data):
    """Anywhere but in a body, which has the checksum of its source, or in padding."""
    frames = [bytes(encode_message(w.Drop(SnapshotId(n, 0, 0)), 64, Traffic.PROTECT)) + bytes(64) for n in range(3)]
    used = len(encode_prefix(b"", 0, Traffic.PROTECT)) + len(msgspec.msgpack.encode(w.Drop(SnapshotId(0, 0, 0))))
    hit, at = data.draw(st.integers(0, 2)), data.draw(st.integers(0, used - 1))
    flipped = bytearray(frames[hit])
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    frames[hit] = bytes(flipped)
    with bench() as line:
        peer, sock = line.sockets()
        victim = line.end(sock)
        prove_by_hand(line, peer)
        peer.sendall(b"".join(frames))
        step_until_idle(line, victim.connection)
        assert victim.heard == [(n, 64) for n in range(hit)]
        assert victim.reason is not None
