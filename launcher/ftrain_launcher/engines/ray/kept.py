"""A launcher that an actor runs: a process under a guard (`guard.py`), whose lines are read as they come."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from ftrain_launcher.engines.ray.window import Line

_LINE_BYTES_MAX = 1 << 15


class Kept:
    """``hear`` takes each line, from threads of this object's own."""

    def __init__(
        self, words: list[str], *, arena: str, folder: str, variables: Mapping[str, str], hear: Callable[[Line], None]
    ) -> None:
        """``words``: of the command line; ``arena``: its folder in shared memory, PID standing for the launcher's pid.

        Raises:
            OSError: it cannot be started, most often since there is no such working folder.
        """
        module = [sys.executable, "-P", "-m"]
        command = [*module, "ftrain_launcher.engines.ray.guard", arena, *module, "ftrain_launcher", *words]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**_environment(), **variables},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._hear = hear
        pipes = ((1, self._process.stdout), (2, self._process.stderr))
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, once it has ended and all its lines were heard; None: not within ``seconds``."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        for reader in self._readers:
            reader.join()
        return code

    def send(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            os.write(self._process.stdin.fileno(), bytes([number]))

    def close(self) -> None:
        """Let it leave its job, and wait until nothing is left of it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self, stream: int, pipe: IO[bytes]) -> None:
        while line := pipe.readline(_LINE_BYTES_MAX):
            self._hear(Line(stream, line))


def _environment() -> dict[str, str]:
    """This process's own, without what Ray sets for what runs in it: one OpenMP thread for each CPU of the actor."""
    began_with = Path("/proc/self/environ").read_bytes()
    return {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" or b"OMP_NUM_THREADS=" in began_with}
