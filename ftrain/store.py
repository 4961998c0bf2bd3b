"""The store of one generation, as a process of its own: `python -m ftrain.store`.

It hosts a fresh ``TCPStore`` on a free port, or on the one that it is given, tells the agent that started it
(StoreReady), and waits to be ended. A process of its own, because agents never load torch, and so that no rank is
special. If its agent dies it goes on, since another may adopt the node's workers; it ends when the node's memory is
gone as well, which the daemon sees to.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from torch._C._distributed_c10d import TCPStore

from ftrain.environment import read_store_environment
from ftrain.link import AgentLink, Hello, StoreReady

CHECK_SECONDS = 1.0
"""How often the process looks whether its node is still there."""
REPORT_TIMEOUT_SECONDS = 30.0
"""How long it tries to reach its agent."""

PORT_TIMEOUT_SECONDS = 5.0
"""How long a port of its own may still be the store's before it, which ends as this one starts."""


def main() -> int:
    """Serve until SIGTERM or SIGINT, or until the node's control page and its agent are gone. Returns the exit code."""
    environment = read_store_environment()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    store = _listening(environment.port, stop)
    link = AgentLink(environment.node_dir / "agent.sock", Hello(-1, -1, os.getpid(), environment.generation))
    deadline = time.monotonic() + REPORT_TIMEOUT_SECONDS
    ready = StoreReady(environment.generation, store.port)
    while not link.send(ready):
        if stop.wait(0.05) or time.monotonic() > deadline:
            return 1
    while not stop.wait(CHECK_SECONDS):
        if not (environment.node_dir / "control").exists() and not link.send(ready):
            break
    link.close()
    return 0


def _listening(port: int, stop: threading.Event) -> TCPStore:
    """Raises RuntimeError: somebody else has the port."""
    deadline = time.monotonic() + PORT_TIMEOUT_SECONDS
    while True:
        try:
            return TCPStore("0.0.0.0", port, is_master=True, wait_for_workers=False)
        except RuntimeError:
            if not port or time.monotonic() > deadline or stop.wait(0.02):
                raise


if __name__ == "__main__":
    sys.exit(main())
