"""The snapshot daemon, one per node: ``python -m ftrain_snapshot.daemon``; started by the agent, outlives it.

Prints ``ready <tcp port>`` on stdout once it listens, and nothing else there; events go to stderr. It re-attaches to
what it finds in the node's folder. It ends when asked, on SIGTERM or SIGINT, or some time after its last agent has
gone, and then removes its files; killed, or by an error, it leaves them to its successor.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ftrain_snapshot.limits import allow_many_sockets
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.priority import Priority, Turns
from ftrain_snapshot.tls import Tls


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftrain_snapshot.daemon", description=__doc__)
    parser.add_argument("--node", required=True, help="the node's name, for the log")
    parser.add_argument("--node-dir", required=True, type=Path, help="the node's folder in shared memory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on for other daemons")
    parser.add_argument("--port", default=0, type=int, help="port to listen on; 0: any")
    parser.add_argument("--secret-file", required=True, type=Path, help="file with the job's secret, in hex")
    parser.add_argument("--grace-seconds", default=20.0, type=float, help="how long to outlive the last agent")
    tls = parser.add_argument_group("TLS between daemons", "all three or none; mutual, TLS 1.3")
    tls.add_argument("--tls-cert", type=Path, help="this node's certificate, in PEM")
    tls.add_argument("--tls-key", type=Path, help="its private key, without a passphrase, in PEM")
    tls.add_argument("--tls-ca", type=Path, help="the authority that signed the certificates of all nodes, in PEM")
    return parser.parse_args(argv)


def _tls(arguments: argparse.Namespace) -> Tls | None:
    """Raises ValueError if it is asked for by halves, or with files that do not do."""
    files = (arguments.tls_cert, arguments.tls_key, arguments.tls_ca)
    if files == (None, None, None):
        return None
    if None in files:
        raise ValueError("--tls-cert, --tls-key and --tls-ca go together: give all three or none")
    return Tls(*files)


def _be_modest() -> None:
    """Files for this user only; as many sockets as a large job has nodes."""
    os.umask(0o077)
    allow_many_sockets()


def _private_folder(path: Path) -> Path:
    """The node's folder, for its user only. Raises PermissionError if it is another user's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    path.chmod(0o700)
    return path.resolve()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; 0 when it ended in order, 2 if it could not start."""
    arguments = _arguments(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy is only asked to XOR: no threads of its own
    try:
        secret = bytes.fromhex(arguments.secret_file.read_text().strip())
        if not secret:
            raise ValueError("the secret is empty")
        tls = _tls(arguments)
        _be_modest()
        from ftrain_snapshot.service import Service

        service = Service(
            node_dir=_private_folder(arguments.node_dir),
            host=arguments.host,
            port=arguments.port,
            secret=secret,
            grace_seconds=arguments.grace_seconds,
            tls=tls,
        )
        signals = _stop_on_signals(service.loop)
        print(f"ready {service.port}", flush=True)
    except (OSError, ValueError) as error:
        print(f"the snapshot daemon of {arguments.node} cannot start: {error}", file=sys.stderr)
        return 2
    import_module("ftrain_snapshot.codec").choose()  # numpy and ISA-L, while nobody waits
    priority = Priority(service.loop, Turns().set)
    service.lines.hurry, service.lines.begin_snapshot = priority.hurry, priority.begin_snapshot
    priority.give_way()  # from here on: until it is there, training may be waiting for it
    service.run()
    for end in signals:
        end.close()
    return 0


def _stop_on_signals(loop: Loop) -> tuple[socket.socket, socket.socket]:
    """Wake the loop from the signal's own file descriptor: no handler runs in the middle of anything."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer.fileno())
    loop.watch(reader, lambda _readable, _writable: loop.stop())
    return reader, writer


if __name__ == "__main__":
    sys.exit(main())
