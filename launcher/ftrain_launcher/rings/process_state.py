"""What the kernel says of one process, asked again and again: its file in /proc stays open.

The descriptor belongs to that process alone: once it is reaped, reading fails, whoever gets its number then.
"""

from __future__ import annotations

import os

from ftrain_launcher.detect.records import ProcessState

_TICKS = os.sysconf("SC_CLK_TCK")
GONE = ProcessState("", 0.0)


class ProcessWatch:
    """Reads one process's state; from the start on it may be gone."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def read(self) -> ProcessState:
        """How it is now."""
        try:
            return _parse(os.pread(self._fd, 1024, 0))
        except OSError:
            return GONE

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _parse(stat: bytes) -> ProcessState:
    # The command in parentheses may hold anything, so fields are counted from its end. The letter is the main thread's.
    fields = stat.rpartition(b")")[2].split()
    letter = fields[0].decode()
    return ProcessState(letter, (int(fields[11]) + int(fields[12])) / _TICKS, letter)
