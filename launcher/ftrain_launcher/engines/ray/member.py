"""The actor on each machine of the job: runs a host's launcher there, anew where that is of use.

It asks the supervisor before it starts anything, and whatever it started ends with it (`guard.py`). Ray starts it
again where its bundle is placed anew; the job sees a new host then.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from typing import Any

from ftrain_launcher.engines.ray.kept import Kept
from ftrain_launcher.engines.ray.order import Order
from ftrain_launcher.engines.ray.placing import EXIT_USAGE, Next, after
from ftrain_launcher.engines.ray.window import Line, Window
from ftrain_launcher.jobs import state_home

_ASIDE_SECONDS = 1.0
"""How long one that may not run here waits until it asks again."""
_AGAIN_SECONDS = 0.5
"""Between two launchers on this machine."""
_BATCH_SECONDS = 0.1


class Member:
    """Made an actor by the supervisor."""

    def __init__(self, name: str, order: bytes, supervisor: Any) -> None:
        import msgspec

        self._name, self._supervisor = name, supervisor
        self._order = msgspec.json.decode(order, type=Order)
        self._window, self._told = Window(), 0
        """What the launcher says, and how much of it the supervisor has."""
        self._changed = threading.Condition()
        self._last_words = ""
        self._hostname = socket.gethostname()

    def serve(self) -> None:
        """Until the job is over, or has no use for this machine."""
        import ray

        machine = ray.get_runtime_context().get_node_id()
        threading.Thread(target=self._tell, daemon=True).start()
        while True:
            answer = ray.get(self._supervisor.came.remote(self._name, machine))
            if answer is None:
                return
            if not answer:
                time.sleep(_ASIDE_SECONDS)
                continue
            host, port = answer
            meaning = after(self._run(host, port))
            with self._changed:
                self._changed.wait_for(lambda: self._told == self._window.end)
            reason = f"{self._hostname}: {self._last_words}"
            ray.get(self._supervisor.left.remote(self._name, meaning is Next.REFUSED, reason))
            if meaning is not Next.AGAIN:
                return
            time.sleep(_AGAIN_SECONDS)

    def _run(self, host: str, port: int) -> int:
        """One launcher, from its start to its end; its exit code."""
        order = self._order
        secret_file = write_secret(order)
        arena = os.path.join(order.arena_folder, f"ftrain-{order.name}-PID")
        try:
            words = order.join(host, port, secret_file)
            kept = Kept(words, arena=arena, folder=order.folder, variables=order.variables, hear=self._hear)
            code = kept.wait()
        except OSError as error:
            self._hear(Line(2, f"ftrain: error: it cannot be started: {error}\n".encode()))
            return EXIT_USAGE
        finally:
            os.unlink(secret_file)
        assert code is not None
        return code

    def _hear(self, line: Line) -> None:
        """The workers' lines are the job's; of the launcher's own, what went wrong, and where."""
        if line.stream == 2 and (words := line.own_words):
            self._last_words = words.removeprefix("error: ")
            if not words.startswith(("error", "warning")):
                return
            line = Line(2, f"ftrain: [{self._hostname}] {words}\n".encode())
        with self._changed:
            self._window.add(line)
            self._changed.notify_all()

    def _tell(self) -> None:
        """Send the lines to the supervisor, in their order, and not one by one."""
        import ray

        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._told < self._window.end)
                lines, end = self._window.after(self._told), self._window.end
            ray.get(self._supervisor.said.remote([(line.stream, line.text) for line in lines]))
            with self._changed:
                self._told = end
                self._changed.notify_all()
            time.sleep(_BATCH_SECONDS)  # what comes meanwhile goes in one call


def write_secret(order: Order) -> str:
    """The job's secret in a new file that only this user can read, under the state folder; its path."""
    folder = state_home() / "ray"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, path = tempfile.mkstemp(prefix=f"{order.name}-", dir=folder)  # with mode 0600
    with os.fdopen(descriptor, "w") as file:
        file.write(order.secret)
    return path
