"""Bulk bytes and small messages between two daemons, over one TCP connection.

First each side proves that it knows the job's secret (HMAC-SHA256 over both sides' nonces); nothing is parsed
before. Then frames: lengths of head and body (u32 each), head (msgpack), body, each part padded to 64 bytes so that
bodies lie aligned in the receive buffer and are checksummed and combined there, while they are in cache. Messages
overtake bulk; bulk waits in its queue as views of shared memory, never as copies. Lengths are bounded; whatever does
not decode closes this connection only.
"""

from __future__ import annotations

import hmac
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.placement import ALIGNMENT_BYTES, round_up
from ftrain_snapshot.wire import PeerMessage

HEAD_BYTES_MAX = 4 << 20
"""Longest message: a description of some 500 GB of state."""
HANDSHAKE_TIMEOUT_SECONDS = 5.0
SILENCE_TIMEOUT_SECONDS = 15.0
"""A peer that acknowledges nothing for so long counts as lost (TCP_USER_TIMEOUT and keep-alive)."""
_RECEIVE_BYTES = 3 * CHUNK_BYTES
_TURN_BYTES = 4 * CHUNK_BYTES
"""At most so much is sent or received before others get their turn."""
_LENGTHS = struct.Struct("<II")
_PREFIX = b"ftrain-snapshot-1\n"
_NONCE_BYTES = _PROOF_BYTES = 32
_PADDING = bytes(ALIGNMENT_BYTES)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)


def _proof(secret: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret, _PREFIX + role + first + second, "sha256")


class Handshake:
    """The mutual challenge, as bytes come in; each side sends its nonce, then its proof over both nonces."""

    def __init__(self, secret: bytes, *, dialled: bool) -> None:
        self._secret = secret
        self._role, self._other = (b"dialler", b"acceptor") if dialled else (b"acceptor", b"dialler")
        self._nonce = os.urandom(_NONCE_BYTES)
        self._peer_nonce = b""
        self.greeting = _PREFIX + self._nonce
        """What to send at once."""

    def needed(self) -> int:
        """How many bytes the next step takes."""
        return _PROOF_BYTES if self._peer_nonce else len(_PREFIX) + _NONCE_BYTES

    def feed(self, data: bytes) -> bytes | None:
        """One step: what to send next, or None once the peer is proved. Raises ProtocolError if it is not."""
        if self._peer_nonce:
            expected = _proof(self._secret, self._other, self._peer_nonce, self._nonce)
            if not hmac.compare_digest(data, expected):
                raise ProtocolError("the peer does not know the job's secret")
            return None
        if not data.startswith(_PREFIX):
            raise ProtocolError("the peer does not speak this protocol")
        self._peer_nonce = data[len(_PREFIX) :]
        return _proof(self._secret, self._role, self._nonce, self._peer_nonce)


class Connection:
    """One connection to another daemon. Everything happens in the loop's thread.

    ``on_message(connection, message, body)``: the body is valid only during the call. ``on_closed(connection,
    reason)`` is called once, whoever closes. ``on_proved(connection)``: the peer knows the secret.
    """

    def __init__(self, loop: Loop, sock: socket.socket, secret: bytes, *, dialled: bool) -> None:
        self.on_message: Callable[[Connection, PeerMessage, memoryview], None] = lambda _c, _m, _b: None
        self.on_closed: Callable[[Connection, str], None] = lambda _c, _r: None
        self.on_proved: Callable[[Connection], None] = lambda _c: None
        self.closed = False
        self.proved = False
        self.welcomed = False
        """Both sides agreed on the generation (session.py)."""
        self._loop = loop
        self._sock = sock
        self._handshake = Handshake(secret, dialled=dialled)
        self._out: deque[memoryview] = deque()
        self._bulk: deque[tuple[PeerMessage, memoryview]] = deque()
        self._waits_to_write = dialled  # until it is connected
        self._buffer: mmap.mmap | bytearray = bytearray(4096)
        self._view = memoryview(self._buffer)
        self._filled = 0
        _tune(sock)
        self._deadline: Timer | None = loop.later(HANDSHAKE_TIMEOUT_SECONDS, self._too_slow)
        loop.watch(sock, self._on_ready, write=dialled)
        self._out.append(memoryview(self._handshake.greeting))
        if not dialled:
            self._flush()

    def send(self, message: PeerMessage) -> None:
        """A small message; it overtakes bulk."""
        if not self.closed:
            self._out.append(_encode(message, 0))
            if not self._waits_to_write:
                self._flush()

    def send_bulk(self, message: PeerMessage, body: memoryview) -> None:
        """Bytes from shared memory, which must stay as they are until sent (else the checksum tells)."""
        if not self.closed:
            self._bulk.append((message, body))
            if not self._waits_to_write:
                self._flush()

    def drop_bulk(self, wanted: Callable[[PeerMessage], bool]) -> None:
        """Forget queued bytes that are not ``wanted`` any more."""
        self._bulk = deque(item for item in self._bulk if wanted(item[0]))

    def close(self, reason: str) -> None:
        """Close it; ``on_closed`` is called. Does nothing if it is closed."""
        if self.closed:
            return
        self.closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._loop.forget(self._sock)
        self._sock.close()
        self._out.clear()
        self._bulk.clear()
        self.on_closed(self, reason)

    def _too_slow(self) -> None:
        self.close("it did not prove itself in time")

    def _on_ready(self, readable: bool, writable: bool) -> None:
        if writable:
            self._flush()
        if readable and not self.closed:
            try:
                self._receive()
            except (OSError, ProtocolError, msgspec.DecodeError, msgspec.ValidationError) as error:
                self.close(f"{type(error).__name__}: {error}")

    # Sending.

    def _flush(self) -> None:
        budget = _TURN_BYTES
        try:
            while (self._out or (self._bulk and self.proved)) and budget > 0:
                if not self._out:
                    message, body = self._bulk.popleft()
                    self._out += (_encode(message, len(body)), body, _padding(len(body)))
                sent = self._sock.sendmsg([self._out[i] for i in range(min(16, len(self._out)))])
                budget -= sent
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                if sent:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(f"{type(error).__name__}: {error}")
            return
        waits = bool(self._out or (self._bulk and self.proved))
        if waits != self._waits_to_write:
            self._waits_to_write = waits
            self._loop.want_write(self._sock, waits)

    # Receiving.

    def _receive(self) -> None:
        budget = _TURN_BYTES
        while budget > 0 and not self.closed:
            wanted = self._view[self._filled :]
            if not self.proved:
                wanted = wanted[: self._handshake.needed() - self._filled]
            try:
                received = self._sock.recv_into(wanted)
            except BlockingIOError:
                return
            if not received:
                raise ProtocolError("the peer closed the connection")
            budget -= received
            self._filled += received
            if not self.proved:
                self._prove()
            else:
                self._parse()
                if received < len(wanted):
                    return  # nothing more has come yet

    def _prove(self) -> None:
        if self._filled < self._handshake.needed():
            return
        answer = self._handshake.feed(bytes(self._view[: self._filled]))
        self._filled = 0
        if answer is not None:
            self._out.append(memoryview(answer))
            self._flush()
            return
        self.proved = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._buffer = mmap.mmap(-1, _RECEIVE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._buffer)
        self.on_proved(self)

    def _parse(self) -> None:
        """Hand out all whole frames, and move what is left to the front."""
        start = 0
        while self._filled - start >= _LENGTHS.size and not self.closed:
            head, body = _LENGTHS.unpack_from(self._view, start)
            if head > HEAD_BYTES_MAX or body > CHUNK_BYTES:
                raise ProtocolError(f"a frame announces {head} and {body} bytes")
            body_start = start + round_up(_LENGTHS.size + head, ALIGNMENT_BYTES)
            end = body_start + round_up(body, ALIGNMENT_BYTES)
            if end > self._filled:
                self._make_room(end - start)
                break
            message = _DECODER.decode(self._view[start + _LENGTHS.size : start + _LENGTHS.size + head])
            self.on_message(self, message, self._view[body_start : body_start + body])
            start = end
        if start and not self.closed:
            left = self._filled - start
            self._view[:left] = self._view[start : self._filled]
            self._filled = left

    def _make_room(self, frame_bytes: int) -> None:
        if frame_bytes > len(self._view):
            larger = mmap.mmap(-1, round_up(frame_bytes, CHUNK_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            view = memoryview(larger)
            view[: self._filled] = self._view[: self._filled]
            self._buffer, self._view = larger, view


def _encode(message: PeerMessage, body_bytes: int) -> memoryview:
    head = bytearray(_LENGTHS.size)
    _ENCODER.encode_into(message, head, _LENGTHS.size)
    _LENGTHS.pack_into(head, 0, len(head) - _LENGTHS.size, body_bytes)
    return memoryview(bytes(head) + _padding(len(head)))


def _padding(length: int) -> memoryview:
    return memoryview(_PADDING)[: -length % ALIGNMENT_BYTES]


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_TIMEOUT_SECONDS * 1000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def dial(loop: Loop, host: str, port: int, secret: bytes) -> Connection:
    """Begin to connect. Raises OSError if that cannot even be tried."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return Connection(loop, sock, secret, dialled=True)
