"""What carries the bytes of a connection between daemons: TCP as it is, or with TLS on it (tls.py)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol


class Stream(Protocol):
    """Bytes over a connected, non-blocking socket; plainly, or by ``tls.TlsStream``."""

    send_needs_read: bool
    receive_needs_write: bool

    def send(self, views: Sequence[memoryview]) -> int:
        """Send some of ``views``. Raises BlockingIOError if nothing could be."""

    def receive(self, view: memoryview) -> int:
        """Fill ``view``; fewer bytes than fit mean that nothing more has come. Raises BlockingIOError if none has."""

    def pending(self) -> bool:
        """Whether there is more to receive of which epoll knows nothing."""


class PlainStream:
    """TCP as it is: no copies between arena and socket."""

    send_needs_read = receive_needs_write = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, views: Sequence[memoryview]) -> int:
        """One ``sendmsg``."""
        return self._sock.sendmsg(views)

    def receive(self, view: memoryview) -> int:
        """One ``recv``."""
        return self._sock.recv_into(view)

    def pending(self) -> bool:
        """Never: epoll knows."""
        return False
