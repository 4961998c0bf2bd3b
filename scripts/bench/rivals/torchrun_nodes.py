"""torchrun as the rival of scripts/bench/recovery.py where a whole node is lost: four agents, ``--nnodes 3:4``.

One agent that does not host the rendezvous is killed with its worker; what is measured ends with the first new step of
the three ranks that are left, since torchrun has no spares.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from recovery_notes import Notes, Recovery, wait_for
from rivals.commands import RANKS, TORCHRUN, TORCHRUN_ENVIRONMENT, WORKER, Command

TIGHTEST = (
    "--rdzv-conf",
    "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3",
    "--monitor-interval",
    "0.05",
)
"""The tightest settings that work."""


def lose_node(folder: Path, settings: tuple[str, ...]) -> tuple[float, Recovery]:
    """When a node was killed, and how its loss went.

    Raises:
        RuntimeError: the others did not go on.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*TORCHRUN, "--nnodes", f"{RANKS - 1}:{RANKS}", "--nproc-per-node", "1", "--max-restarts", "100"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "bench"]
    command += ["--local-addr", "127.0.0.1", *settings, str(WORKER), "torchrun", str(folder)]
    notes = Notes(folder, RANKS)
    with ExitStack() as stack:
        agents: list[Command] = []
        for number in range(RANKS):
            agents.append(stack.enter_context(Command(command, folder / f"log-{number}", TORCHRUN_ENVIRONMENT)))
            if number == 0:  # it is to host the rendezvous
                wait_for("its rendezvous", agents[0].alive, lambda: listens(agents[0].process.pid, port))
        notes.wait_warm(lambda: all(agent.alive() for agent in agents))
        lost = psutil.Process(agents[-1].process.pid)
        pids = [lost.pid, *(child.pid for child in lost.children(recursive=True))]
        old, killed_at = notes.last(), time.time()
        for pid in pids:
            os.kill(pid, 9)
        return killed_at, notes.wait_recovered(old, lambda: all(agent.alive() for agent in agents[:-1]), RANKS - 1)


def listens(pid: int, port: int) -> bool:
    """Whether the process has this port."""
    found = psutil.Process(pid).net_connections("tcp")
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)
