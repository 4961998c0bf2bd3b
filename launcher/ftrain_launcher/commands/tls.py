"""``--tls-cert``, ``--tls-key`` and ``--tls-ca`` of ``ftrain run``: checked before anything is started."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ftrain_launcher.errors import UsageError

if TYPE_CHECKING:
    from ftrain_launcher.jobs import TlsFiles
    from ftrain_snapshot.tls import Tls

_HANDSHAKE_ROUNDS_MAX = 10


def add_options(add: Callable[..., object]) -> None:
    """All three or none, on every host."""
    for flag, about in (
        ("--tls-cert", "this host's certificate, in PEM: daemons then talk TLS 1.3 to each other"),
        ("--tls-key", "its private key, in PEM, without a passphrase"),
        ("--tls-ca", "the authority that signed the certificates of all hosts, in PEM"),
    ):
        add(flag, type=Path, metavar="FILE", help=about)


def files(chosen: argparse.Namespace) -> TlsFiles | None:
    """The files that were given, absolute; None: none were. Raises UsageError if they do not do."""
    from ftrain_launcher.jobs import TlsFiles
    from ftrain_snapshot.tls import Tls

    given = (chosen.tls_cert, chosen.tls_key, chosen.tls_ca)
    if given == (None, None, None):
        return None
    if None in given:
        raise UsageError("--tls-cert, --tls-key and --tls-ca go together: give all three or none")
    certificate, key, authority = (path.absolute() for path in given)
    try:
        _try(Tls(certificate, key, authority))
    except OSError as error:
        reason = getattr(error, "verify_message", "") or error.strerror or error
        raise UsageError(f"--tls-cert {certificate} is refused under --tls-ca {authority}: {reason}") from error
    except ValueError as error:
        raise UsageError(f"--tls-cert, --tls-key, --tls-ca: {error}") from error
    return TlsFiles(str(certificate), str(key), str(authority))


def _try(tls: Tls) -> None:
    """Shake hands with ourselves, as every two daemons will. Raises OSError (ssl.SSLError) if that fails."""
    import ssl

    pair = socket.socketpair()
    ends = []
    try:
        for sock, dialled in zip(pair, (True, False), strict=True):
            sock.setblocking(False)
            ends.append(tls.wrap(sock, dialled=dialled))
        for _ in range(_HANDSHAKE_ROUNDS_MAX):
            for end in ends:
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
    finally:
        for sock in (*pair, *ends):
            sock.close()


def check_same(theirs: TlsFiles | None, ours: TlsFiles | None) -> None:
    """A host with TLS and one without cannot talk. Raises UsageError."""
    if theirs is not None and ours is None:
        raise UsageError("the job's daemons talk TLS: give --tls-cert, --tls-key and --tls-ca on this host, too")
    if theirs is None and ours is not None:
        raise UsageError("the job was started without --tls-cert, --tls-key and --tls-ca: leave them out here, too")
