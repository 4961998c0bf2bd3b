"""Bulk bytes and small messages between two daemons, over one TCP connection.

First each side proves that it knows the job's secret (handshake.py); nothing is parsed, and nothing allocated, before.
Then frames (peer_frames.py), whose bodies are checksummed and combined in the receive buffer, while they are in
cache. Who goes first is in lines.py. Bulk waits in its queue as views of shared memory, never as copies, so that a
connection holds its receive buffer and few small messages, however much is queued. Whatever is not as it was sent, or
does not decode, closes this connection only.

Tried instead, and within the noise of these (FACTS 4: the kernel's copies are the bound): a receive buffer of several
frames, larger socket buffers, and receiving bodies straight into their place, which saves 0.01 of 0.2 processor
seconds per GB and would leave unchecked bytes there.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.handshake import Handshake
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.peer_frames import (
    HEAD_BYTES_MAX,
    PREFIX_BYTES,
    encode_message,
    padding,
    read_message,
    read_prefix,
)
from ftrain_snapshot.placement import round_up
from ftrain_snapshot.socket_streams import PlainStream, Stream
from ftrain_snapshot.tcp_counts import Segments, segments
from ftrain_snapshot.tls import TlsStream
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.wire import PeerMessage

HANDSHAKE_TIMEOUT_SECONDS = 5.0
SILENCE_TIMEOUT_SECONDS = 15.0
"""A peer that acknowledges nothing for so long counts as lost (TCP_USER_TIMEOUT and keep-alive)."""
HEAR_OUT_SECONDS = 1.0
"""For so long, at most, a peer that is gone is read from."""
UNREAD_BYTES_MAX = 8 * HEAD_BYTES_MAX
"""Small messages that may wait for a peer that does not read; then the connection is closed."""
QUEUED_MAX = 1 << 20
"""Chunks that may wait for one peer, a TiB; then the connection is closed."""
_RECEIVE_BYTES = 2 * CHUNK_BYTES
"""A frame with a full body, its head, and what is read ahead; touched as far as it is used."""
_READ_AHEAD_BYTES = 8 << 10
"""How much of what follows a frame is read with it: its successor's head, and little that must be moved."""
_TURN_BYTES = 4 * CHUNK_BYTES
"""At most so much is sent or received before others get their turn."""
_VIEWS_MAX = 16
_VIEWS_FEW = 5
"""With fewer views at hand the next chunk, of up to three, is taken as well. Python finds its caches emptied after each
system call that moves bulk: framing three chunks there costs little more than framing one."""
_NOTHING = memoryview(b"")

_Bulk = tuple[PeerMessage, memoryview, Callable[[], None] | None]


class Connection:
    """One connection to another daemon. Everything happens in the loop's thread.

    ``on_message(connection, message, body)``: the body is valid only during the call. ``on_closed(connection,
    reason)`` is called once, whoever closes. ``on_proved(connection)``: the peer knows the secret.
    """

    def __init__(self, loop: Loop, sock: socket.socket, lines: Lines, *, dialled: bool) -> None:
        self.on_message: Callable[[Connection, PeerMessage, memoryview], None] = lambda _c, _m, _b: None
        self.on_closed: Callable[[Connection, str], None] = lambda _c, _r: None
        self.on_proved: Callable[[Connection], None] = lambda _c: None
        self.closed = False
        self.proved = False
        self.welcomed = False
        """Both sides agreed on the generation (session.py)."""
        self._loop, self._lines, self._sock = loop, lines, sock
        self._dialled = dialled
        self._handshake = Handshake(lines.secret, dialled=dialled)
        self._stream: Stream | None = None
        self._out: deque[memoryview] = deque()
        self._unread_bytes = 0
        self._urgent: deque[_Bulk] = deque()
        self._bulk: deque[_Bulk] = deque()
        self._on_sent: Callable[[], None] | None = None
        self._waits_to_write = dialled  # until it is connected
        self._buffer: mmap.mmap | bytearray = bytearray(256)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._frame_bytes = 0
        self._wake = self._flush  # one bound method: by it, lines know this connection
        _tune(sock)
        self._gone: str | None = None
        """How it was found that the peer is gone, though not all is read yet that it sent."""
        self._failure: str | None = None
        """Why sending has failed, until that is told."""
        self._deadline: Timer | None = loop.later(HANDSHAKE_TIMEOUT_SECONDS, self._too_slow)
        loop.watch(sock, self._on_ready, write=dialled)
        self._out.append(memoryview(self._handshake.greeting))
        if not dialled and self._open_stream() is not None:
            self._flush()

    def send(self, message: PeerMessage, body: memoryview = _NOTHING) -> None:
        """A small message, to a proved peer; it overtakes bulk. ``body``: of a probe, which is small, too."""
        if self.closed or self._gone:
            return
        assert self.proved, "nothing is said to who may be a stranger"
        traffic = Traffic.PROBE if body else Traffic.MESSAGE
        frame = encode_message(message, len(body), traffic)
        self._unread_bytes += len(frame) + len(body)
        self._out += [view for view in (frame, body, padding(len(body))) if view]
        self._lines.usage.sent_bytes[traffic] += len(body)
        if not self._waits_to_write:
            self._flush()
        if self._unread_bytes > UNREAD_BYTES_MAX:
            self._fail("it does not read what it is told")

    def send_bulk(
        self,
        message: PeerMessage,
        body: memoryview,
        *,
        urgent: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Bytes from shared memory, which must stay as they are until sent (else the checksum tells).

        ``on_sent`` is called when they are not needed any more; never, if they are dropped.
        """
        if self.closed or self._gone:
            return
        if len(self._urgent) + len(self._bulk) >= QUEUED_MAX:
            self._fail("it asks for more than it takes")
            return
        if urgent:
            self._urgent.append((message, body, on_sent))
            self._lines.set_urgent(self._wake, True)
        else:
            self._bulk.append((message, body, on_sent))
        if not self._waits_to_write:
            self._flush()

    def drop_bulk(self, wanted: Callable[[PeerMessage], bool]) -> None:
        """Forget queued bytes that are not ``wanted`` any more."""
        self._bulk = deque(item for item in self._bulk if wanted(item[0]))
        if self._urgent:
            self._urgent = deque(item for item in self._urgent if wanted(item[0]))
            self._lines.set_urgent(self._wake, bool(self._urgent))

    def segments(self) -> Segments:
        """What TCP has sent and lost here so far."""
        return segments(self._sock)

    def close(self, reason: str) -> None:
        """Close it; ``on_closed`` is called, if it was not before."""
        if self.closed:
            self._tell_failure()
            return
        self._shut()
        self.on_closed(self, self._gone or reason)

    def _fail(self, reason: str) -> None:
        """Close it while something is sent; ``on_closed`` is called a little later: who tells all members something
        must not find them changed in the middle of it."""
        if self.closed:
            return
        self._shut()
        self._failure = reason
        self._loop.later(0.0, self._tell_failure)

    def _hear_out(self, reason: str) -> None:
        """Nothing can be sent any more: the peer is gone. What it had sent before has come: a lost node's last chunks.
        The end of that closes it."""
        if self._gone is None:
            self._gone = reason
            self._waits_to_write = False
            self._loop.want_write(self._sock, False)
            self._out.clear()
            self.drop_bulk(lambda _: False)
            self._loop.later(HEAR_OUT_SECONDS, lambda: self.close(reason))

    def _tell_failure(self) -> None:
        if self._failure is not None:
            reason, self._failure = self._failure, None
            self.on_closed(self, reason)

    def _shut(self) -> None:
        self.closed = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._lines.forget(self._wake)
        self._loop.forget(self._sock)
        self._sock.close()
        for queue in (self._out, self._urgent, self._bulk):
            queue.clear()

    def _too_slow(self) -> None:
        self.close("it did not prove itself in time")

    def _on_ready(self, readable: bool, writable: bool) -> None:
        stream = self._stream or self._open_stream()
        if stream is None:
            return
        if writable:
            self._flush()
        again = stream.receive_needs_write  # TLS alone: each way may have to wait for the other
        if readable or (writable and again):
            self._receive()
        if again or stream.receive_needs_write or stream.send_needs_read:
            self._flush()

    def _open_stream(self) -> Stream | None:
        """Once it is connected: what carries the bytes."""
        if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.close(os.strerror(error))
        elif self._lines.tls is None:
            self._stream = PlainStream(self._sock)
        else:
            try:
                self._sock = wrapped = self._lines.tls.wrap(self._sock, dialled=self._dialled)
                self._stream = TlsStream(wrapped)
            except OSError as error:
                self.close(f"{type(error).__name__}: {error}")
        return self._stream

    # Sending.

    def _flush(self) -> None:
        stream, budget = self._stream, _TURN_BYTES
        if stream is None or self.closed or self._gone:
            return
        try:
            while budget > 0 and (self._out or self._next_chunks()):
                sent = stream.send([self._out[i] for i in range(min(_VIEWS_MAX, len(self._out)))])
                budget -= sent
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                if sent:
                    self._out[0] = self._out[0][sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            self._hear_out(f"{type(error).__name__}: {error}")
            return
        waits = bool(self._out or self._next_chunks()) and not stream.send_needs_read
        waits = waits or stream.receive_needs_write
        if waits != self._waits_to_write:
            self._waits_to_write = waits
            self._loop.want_write(self._sock, waits)

    def _next_chunks(self) -> bool:
        """Once all is sent: take what goes next out of the queues; False if there is nothing, or it is not its turn."""
        self._unread_bytes = 0
        if (on_sent := self._on_sent) is not None:
            self._on_sent = None
            on_sent()
        while self.proved and len(self._out) < _VIEWS_FEW and self._on_sent is None and self._next_chunk():
            pass
        return bool(self._out)

    def _next_chunk(self) -> bool:
        if self._urgent:
            (message, body, self._on_sent), traffic = self._urgent.popleft(), Traffic.RESTORE
            if not self._urgent:
                self._lines.set_urgent(self._wake, False)
        elif self._bulk and self._lines.may_send(self._wake, len(self._bulk[0][1])):
            (message, body, self._on_sent), traffic = self._bulk.popleft(), Traffic.PROTECT
        else:
            return False
        self._out += [view for view in (encode_message(message, len(body), traffic), body, padding(len(body))) if view]
        self._lines.usage.sent_bytes[traffic] += len(body)
        return True

    # Receiving.

    def _receive(self) -> None:
        if self._stream is None or self.closed:
            return
        try:
            self._read(self._stream)
        except (OSError, ProtocolError) as error:
            self.close(f"{type(error).__name__}: {error}")

    def _read(self, stream: Stream) -> None:
        budget = _TURN_BYTES
        while budget > 0 and not self.closed:
            wanted = self._view[self._filled : self._wanted_bytes()]
            try:
                received = stream.receive(wanted)
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
        if not self.closed and stream.pending():
            self._loop.later(0.0, self._receive)

    def _wanted_bytes(self) -> int:
        """Up to where to fill the buffer: to the end of the frame that has begun, and little more."""
        if not self.proved:
            return self._handshake.needed()
        return max(self._filled, self._frame_bytes) + _READ_AHEAD_BYTES

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
        self._make_room(_RECEIVE_BYTES)
        self.on_proved(self)
        self._flush()  # bulk that was queued early

    def _parse(self) -> None:
        """Hand out all whole frames, and move what is left to the front."""
        start = self._frame_bytes = 0
        while self._filled - start >= PREFIX_BYTES and not self.closed:
            frame = self._view[start : self._filled]
            prefix = read_prefix(frame)
            if prefix.frame_bytes > len(frame):
                self._frame_bytes = prefix.frame_bytes
                break
            message = read_message(prefix, frame)
            self._lines.usage.received_bytes[prefix.traffic] += prefix.body_bytes
            self.on_message(self, message, frame[prefix.body_start : prefix.body_start + prefix.body_bytes])
            start += prefix.frame_bytes
        if start and not self.closed:
            left = self._filled - start
            self._view[:left] = self._view[start : self._filled]
            self._filled = left
        self._make_room(self._frame_bytes + _READ_AHEAD_BYTES)

    def _make_room(self, needed_bytes: int) -> None:
        if needed_bytes > len(self._view):
            larger = mmap.mmap(-1, round_up(needed_bytes, CHUNK_BYTES), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            view = memoryview(larger)
            view[: self._filled] = self._view[: self._filled]
            self._buffer, self._view = larger, view


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_TIMEOUT_SECONDS * 1000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def dial(loop: Loop, host: str, port: int, lines: Lines) -> Connection:
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
    return Connection(loop, sock, lines, dialled=True)
