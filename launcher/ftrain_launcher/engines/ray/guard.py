"""A process between a Ray actor and its launcher: nothing of the launcher outlives the actor, nor the launcher itself.

    python -m ftrain_launcher.engines.ray.guard ARENA COMMAND...

Ray ends actors, and their children, by SIGKILL, and whatever those had started would stay. The guard is in a session
of its own and reads a line from the actor: a byte is a signal for the launcher, its end is the actor's, and lets the
launcher leave the job (SIGHUP). When the launcher has ended, in whatever way, all that descends from it is killed,
and its shared memory given back. If the guard itself is killed, the launcher gets SIGHUP from the kernel, and ends all
by itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ftrain_launcher.node.state import kill_trees
from ftrain_launcher.processes import linux

_LEAVING_SECONDS = 10.0
"""For a launcher that was told to leave: it takes one or two."""


def watch(line: int, launcher: subprocess.Popen[bytes]) -> None:
    """Until the launcher has ended, or does not although its actor is gone."""
    handle = os.pidfd_open(launcher.pid)
    deadline: float | None = None
    try:
        while True:
            wanted = [handle] if deadline is not None else [handle, line]
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(wanted, [], [], wait)
            if handle in ready or not ready:
                return
            words = os.read(line, 64)
            for number in words or (signal.SIGHUP,):
                launcher.send_signal(number)
            if not words:
                deadline = time.monotonic() + _LEAVING_SECONDS
    finally:
        os.close(handle)


def clear_away(arena: Path) -> None:
    """Kill and bury all that is left: this process is the subreaper of all."""
    while children := [child.pid for child in psutil.Process().children()]:
        kill_trees(children)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    shutil.rmtree(arena, ignore_errors=True)


def main() -> int:
    """Run the command to its end; its exit code, 128 + N for signal N."""
    arena, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks SIGINT in all threads of an actor but one
    linux.adopt_orphans()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the launcher, and come by the line
    own = os.getpid()

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        linux.die_with_parent(own, signal.SIGHUP)

    # The guard has one thread: what runs between fork and exec finds no lock held.
    launcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=begin)
    watch(0, launcher)
    launcher.poll()
    clear_away(Path(arena.replace("PID", str(launcher.pid))))
    code = launcher.returncode
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
