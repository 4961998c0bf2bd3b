"""How a zygote's process is started: with as few imports as possible, since a launcher does it before all else.

Who started it connects to it by ``zygote_line.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ftrain_launcher.processes import spawning

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"
"""glibc manual, "Memory Allocation Tunables"; before 2.35, and elsewhere than in glibc, it is ignored."""


@dataclass(frozen=True, kw_only=True)
class ZygoteConfig:
    """How a node gets its zygote."""

    socket_path: Path
    log_path: Path
    """Where the zygote's own log goes (appended)."""
    root_socket: Path | None = None
    """A zygote to fork this one from. None, or if that fails: a new process."""
    preload: str = spawning.PRELOAD
    """The module that a new process imports; empty: none (workers should then start by ``exec``)."""
    environment: Mapping[str, str] | None = None
    """What a new process gets, through ``zygote_environment``; None: this process's own."""
    owner_grace_seconds: float = spawning.OWNER_GRACE_SECONDS
    """How long a new process lives on, with its workers, while no agent is connected."""
    start_timeout_seconds: float = 180.0
    """The imports take minutes from a busy shared file system, and on a machine that is busy itself."""

    def command(self) -> list[str]:
        """The command of a new process. ``-P``: the folder it starts in must not shadow any module."""
        preload = ["--preload", self.preload] if self.preload else ["--no-preload"]
        grace = ["--owner-grace-seconds", str(self.owner_grace_seconds)]
        program = [sys.executable, "-P", "-m", "ftrain_launcher.processes.zygote"]
        return [*program, "--socket", str(self.socket_path), *preload, *grace]


def zygote_environment(base: Mapping[str, str], *, preload: bool = True) -> dict[str, str]:
    """The environment to start a zygote in, and so what its workers have besides ``worker_environment``.

    As torchrun: one OpenMP thread unless the user says otherwise. What malloc has lies in huge pages, where the kernel
    gives some on request: what a worker has is touched, and given back as it ends, in a fraction of the time. By
    glibc's own means: with torch's, ``THP_MEM_ALLOC_ENABLE``, each step touches memory anew and takes longer. A zygote
    with numpy in it must come out of its imports with one thread of its own, whatever the user says, or it could not
    fork (FACTS 5).
    """
    tunables = base.get(_TUNABLES, "")
    if _HUGE_PAGES not in tunables:
        tunables = f"{tunables}:{_HUGE_PAGES}=1".removeprefix(":")
    return {
        "OMP_NUM_THREADS": "1",
        **base,
        _TUNABLES: tunables,
        **({"OPENBLAS_NUM_THREADS": "1"} if preload else {}),
    }


@dataclass(frozen=True)
class Started:
    """A zygote's process, a child of this one, that listens once its imports are done."""

    config: ZygoteConfig
    pid: int

    def kill(self) -> None:
        """End it, if it is there: by its pid only as long as that is a child's."""
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


def start_zygote(config: ZygoteConfig) -> Started:
    """Start a zygote's process in a session of its own."""
    base = os.environ if config.environment is None else config.environment
    command = config.command()
    # Not subprocess: the agent may end while its zygote goes on, and its successor is the one to talk to it.
    pid = os.posix_spawn(
        command[0],
        command,
        zygote_environment(base, preload=bool(config.preload)),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(config.log_path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
    )
    return Started(config, pid)
