"""TLS under the frames of the data plane: for networks on which somebody might read, change or inject.

TLS 1.3 only, and mutual: both ends present a certificate that the job's CA has signed. Names are not compared (nodes
come and go, at any address): whoever holds a certificate of this CA may knock, and still has to know the job's secret,
whose challenge runs inside. Costs over a processor second per GB at each end (0.4 without, FACTS 4), hence an option.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

_RECORD_BYTES = 16 << 10
"""A TLS record: OpenSSL writes one at a time."""


class Tls:
    """The two contexts of a daemon, which accepts and dials."""

    def __init__(self, certificate: Path, key: Path, authority: Path) -> None:
        """Raises ValueError, naming the file, if one cannot be read or they do not belong together."""
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, certificate, key, authority)
        self._server.num_tickets = 0  # nobody resumes
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, certificate, key, authority)

    def wrap(self, sock: socket.socket, *, dialled: bool) -> ssl.SSLSocket:
        """Take a connected, non-blocking socket over. Its file descriptor stays the same. Raises OSError."""
        sock.getpeername()  # an SSLSocket over what is not connected would speak in the clear
        context = self._client if dialled else self._server
        return context.wrap_socket(sock, server_side=not dialled, do_handshake_on_connect=False)


def _context(protocol: int, certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    for path in (certificate, key, authority):
        try:
            path.read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from None
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # a locked key fails; it does not ask
    except ssl.SSLError as error:
        reason = error.reason or "they are no certificate and key in PEM"
        raise ValueError(f"{certificate} and {key} do not belong together: {reason}") from None
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise ValueError(f"{authority} holds no certificate of an authority: {error.reason or error}") from None
    return context


class TlsStream:
    """One connection under TLS, a ``socket_streams.Stream``. The handshake happens in the first calls."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self.send_needs_read = False
        """``send`` was blocked by what has not come yet: try again once something has."""
        self.receive_needs_write = False
        """``receive`` was blocked by what could not be sent: try again once the socket can be written."""

    def send(self, views: Sequence[memoryview]) -> int:
        """Send some. A blocked send is repeated with the same bytes at the front, as OpenSSL wants it."""
        self.send_needs_read = False
        front, sent = _front(views), 0
        try:
            while sent < len(front):
                sent += self._sock.send(front[sent : sent + _RECORD_BYTES])
        except ssl.SSLWantReadError:
            self.send_needs_read = True
        except ssl.SSLWantWriteError:
            pass
        if not sent:
            raise BlockingIOError
        return sent

    def receive(self, view: memoryview) -> int:
        """Fill ``view`` as far as possible; fewer bytes than fit mean that nothing more has come. 0: closed."""
        self.receive_needs_write = False
        filled = 0
        try:
            while filled < len(view) and (received := self._sock.recv_into(view[filled:])):
                filled += received
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self.receive_needs_write = True
        else:
            return filled
        if not filled:
            raise BlockingIOError
        return filled

    def pending(self) -> bool:
        """Whether bytes are decrypted already, of which epoll knows nothing."""
        return self._sock.pending() > 0


def _front(views: Sequence[memoryview]) -> memoryview:
    """What goes next: the first view, or where that is short, it and the following up to about a record."""
    if len(views[0]) >= _RECORD_BYTES or len(views) == 1:
        return views[0]
    pieces, length = [], 0
    for view in views:
        pieces.append(view[: _RECORD_BYTES - length])
        length += len(pieces[-1])
        if length == _RECORD_BYTES:
            break
    return memoryview(b"".join(pieces))
