"""The snapshot daemon, one per node: ``python -m ftrain_snapshot.daemon``; started by the agent, outlives it.

Prints ``ready <tcp port>`` on stdout once it listens, and nothing else there; events go to stderr. It re-attaches to
what it finds in the node's folder. It ends when asked, on SIGTERM or SIGINT, or some time after its last agent has
gone, and then removes its files; killed, it leaves them to its successor.
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

from ftrain_snapshot.loop import Loop


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftrain_snapshot.daemon", description=__doc__)
    parser.add_argument("--node", required=True, help="the node's name, for the log")
    parser.add_argument("--node-dir", required=True, type=Path, help="the node's folder in shared memory")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on for other daemons")
    parser.add_argument("--port", default=0, type=int, help="port to listen on; 0: any")
    parser.add_argument("--secret-file", required=True, type=Path, help="file with the job's secret, in hex")
    parser.add_argument("--grace-seconds", default=20.0, type=float, help="how long to outlive the last agent")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; 0 when it ended in order, 2 if it could not start."""
    arguments = _arguments(argv)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy is only asked to XOR: no threads of its own
    from ftrain_snapshot.service import Service

    try:
        secret = bytes.fromhex(arguments.secret_file.read_text().strip())
        arguments.node_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not secret:
            raise ValueError("the secret is empty")
        service = Service(
            node_dir=arguments.node_dir.resolve(),
            host=arguments.host,
            port=arguments.port,
            secret=secret,
            grace_seconds=arguments.grace_seconds,
        )
    except (OSError, ValueError) as error:
        print(f"the snapshot daemon of {arguments.node} cannot start: {error}", file=sys.stderr)
        return 2
    signals = _stop_on_signals(service.loop)
    print(f"ready {service.port}", flush=True)
    import_module("ftrain_snapshot.codec.xor")  # numpy, while nobody waits
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
