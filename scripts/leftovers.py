"""What a run left behind: processes that carry its mark, and ftrain's files in shared memory.

The tests, the demo and the benchmarks ask the same two questions when they end. A process is known by a
variable in its environment, set before anything was started: children inherit it through fork and exec, also when
they became daemons, and no other run of ftrain on the machine is mistaken for ours, as a search by name would.
A file or folder in /dev/shm is known by its name, ``ftrain-*``, and by not having been there at the start; one that
a process without our mark has mapped or names on its command line belongs to another run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def marked_processes(variable: str, value: str) -> dict[int, str]:
    """Pid and command line of each living process, but this one, whose environment has ``variable=value``."""
    mark = f"{variable}={value}".encode()
    return {
        int(process.name): _command_line(process)
        for process in _processes()
        if mark in _read(process / "environ").split(b"\0")
    }


def shared_memory_entries() -> set[str]:
    """Names of ftrain's files and folders in shared memory."""
    return {path.name for path in SHARED_MEMORY.glob("ftrain-*")}


def used_by_others(entry: str, variable: str, value: str) -> bool:
    """Whether a living process without our mark uses this entry of shared memory: then it is not ours."""
    ours = marked_processes(variable, value)
    needle = str(SHARED_MEMORY / entry).encode()
    others = (process for process in _processes() if int(process.name) not in ours)
    return any(needle in _read(other / file) for other in others for file in ("cmdline", "environ", "maps"))


def wait_until_clean(variable: str, value: str, entries_before: set[str], timeout_seconds: float) -> list[str]:
    """Wait for everything of ours to be gone; what is left at the timeout, one line each (none: clean)."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        processes = marked_processes(variable, value)
        entries = shared_memory_entries() - entries_before
        if not processes and not entries:
            return []
        if time.monotonic() >= deadline:
            left = [f"process {pid}: {command}" for pid, command in sorted(processes.items())]
            kept = sorted(entry for entry in entries if not used_by_others(entry, variable, value))
            return left + [f"shared memory: {SHARED_MEMORY / entry}" for entry in kept]
        time.sleep(0.05)


def _processes() -> Iterator[Path]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            yield process


def _read(path: Path) -> bytes:
    """The file's bytes; none if the process ended meanwhile, is a zombie or is not ours to see."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _command_line(process: Path) -> str:
    return _read(process / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
