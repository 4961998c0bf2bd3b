"""One connection of an agent or a worker, as its daemon sees it."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable

import msgspec

from ftrain_snapshot import messages as m
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.frames import FrameBuffer, decode, encode_frame
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop

UNREAD_MAX = 8
"""Answers that may wait for a client to read them, what follows behind them counted, too."""
_NOTHING = memoryview(b"")
_REQUEST: msgspec.msgpack.Decoder[m.Request] = msgspec.msgpack.Decoder(m.Request)


class Client:
    """One connection of an agent or a worker."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_request: Callable[[Client, m.Request], None],
        on_closed: Callable[[Client], None],
    ) -> None:
        self.role = ""
        self.closed = False
        self._loop, self._sock = loop, sock
        self._on_request, self._on_closed = on_request, on_closed
        self._frames = FrameBuffer()
        self._out: deque[memoryview] = deque()
        sock.setblocking(False)
        loop.watch(sock, self._on_ready)

    def answer(self, reply: m.Reply, body: memoryview = _NOTHING) -> None:
        """Send a reply, and what follows it. A client that asks for more and more and does not read is closed."""
        if self.closed:
            return
        begins = not self._out
        frame = memoryview(encode_frame(msgspec.msgpack.encode(reply)))
        self._out += [view for view in (frame, body) if view]
        if len(self._out) > UNREAD_MAX:
            self.close()
        elif begins:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                sent = self._sock.send(self._out[0])
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._loop.want_write(self._sock, bool(self._out))

    def close(self) -> None:
        """Close it, and let the service know."""
        if not self.closed:
            self.closed = True
            self._loop.forget(self._sock)
            self._sock.close()
            self._on_closed(self)

    def _on_ready(self, readable: bool, writable: bool) -> None:
        if writable:
            self._flush()
        if not readable or self.closed:
            return
        try:
            data = self._sock.recv(1 << 18)
            for body in self._frames.feed(data):
                if not self.closed:
                    self._on_request(self, decode(_REQUEST, body))
            if not data:
                self.close()
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            log("client_closed", role=self.role, error=error)
            self.close()
