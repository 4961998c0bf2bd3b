"""The mutual challenge with which two daemons prove to each other that they know the job's secret.

Each side sends a fresh nonce, then HMAC-SHA256 over its role and both nonces; the secret itself is never sent. What
that withstands: a recorded handshake (the other side's nonce is new each time, so that an old generation's stream is
refused with it), a mirror (a side that hears its own nonce hangs up, and the roles differ), and a relay of one
acceptor's words to another (each proof is over both nonces). What it does not: once both are proved, frames are not
authenticated one by one, so that somebody *on the path* could change or inject them; TLS (tls.py) is for that.
"""

from __future__ import annotations

import hmac
import os

from ftrain_snapshot.errors import ProtocolError

PREFIX = b"ftrain-snapshot-2\n"
_NONCE_BYTES = _PROOF_BYTES = 32


def _proof(secret: bytes, role: bytes, own: bytes, other: bytes) -> bytes:
    return hmac.digest(secret, PREFIX + role + own + other, "sha256")


class Handshake:
    """The challenge, as bytes come in; each side sends its nonce, then its proof over both nonces."""

    def __init__(self, secret: bytes, *, dialled: bool) -> None:
        self._secret = secret
        self._role, self._other = (b"dialler", b"acceptor") if dialled else (b"acceptor", b"dialler")
        self._nonce = os.urandom(_NONCE_BYTES)
        self._peer_nonce = b""
        self.greeting = PREFIX + self._nonce
        """What to send at once."""

    def needed(self) -> int:
        """How many bytes the next step takes."""
        return _PROOF_BYTES if self._peer_nonce else len(PREFIX) + _NONCE_BYTES

    def feed(self, data: bytes) -> bytes | None:
        """One step, with ``needed()`` bytes: what to send next, or None once the peer is proved.

        Raises ProtocolError if it is not, or speaks another protocol.
        """
        if len(data) != self.needed():
            raise ProtocolError(f"{len(data)} bytes are no step of the handshake")
        if self._peer_nonce:
            expected = _proof(self._secret, self._other, self._peer_nonce, self._nonce)
            if not hmac.compare_digest(data, expected):
                raise ProtocolError("the peer does not know the job's secret")
            return None
        if not data.startswith(PREFIX):
            raise ProtocolError("the peer does not speak this protocol")
        if data == self.greeting:
            raise ProtocolError("the peer is a mirror")
        self._peer_nonce = data[len(PREFIX) :]
        return _proof(self._secret, self._role, self._nonce, self._peer_nonce)
