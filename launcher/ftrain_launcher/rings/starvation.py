"""How long a process's main thread has waited for a processor that others used, or that a quota kept from it.

The kernel counts a thread that a quota holds back as waiting, too. That is the process's own slowness and nobody
else's doing, so what its cgroup and those above it were throttled is taken off, and told apart. All files stay
open, as in `process_state`; one that is not there (a kernel without the count, no cgroups) counts nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

_CGROUPS = "/sys/fs/cgroup"
_UNITS = {b"throttled_time": 1e-9, b"throttled_usec": 1e-6}
"""Of cgroup v1 and v2."""
_LEAST_SECONDS = 0.001
"""Less starves nobody."""


class Waited(NamedTuple):
    """Seconds without a processor."""

    starved: float = 0.0
    """That others used."""
    throttled: float = 0.0
    """By a quota of its cgroup, or of one above."""


class Starvation:
    """One process's; from the start on it may be gone."""

    def __init__(self, pid: int) -> None:
        self._schedule, self._groups = _open(f"/proc/{pid}/schedstat"), _open(f"/proc/{pid}/cgroup")
        self._named = b""
        self._stats: list[int] = []
        self._waited = waited_seconds(_read(self._schedule))
        self._look_up_groups()
        self._throttled = self._read_throttled()
        self._turns, self._queued_ns = b"", 0
        """What the kernel counted when it was last seen to run or to sleep, and when that was."""

    def queued_seconds(self, letter: str, now_ns: int) -> float:
        """For how long, as seen from look to look, it waits for a processor by now: the kernel counts that once it has
        one. ``letter``: its state."""
        turns = _read(self._schedule)
        if letter != "R" or not turns or turns != self._turns:
            self._turns, self._queued_ns = turns, now_ns
        return (now_ns - self._queued_ns) * 1e-9

    def more(self) -> Waited | None:
        """What has come to it since it was asked last; None: not known, it has ended."""
        counted = _read(self._schedule)
        if not counted and self._schedule >= 0:
            return None
        waited = waited_seconds(counted)
        if waited - self._waited < _LEAST_SECONDS:  # so it was not throttled for longer either
            self._waited = waited
            return Waited()
        moved = self._look_up_groups()
        throttled = self._read_throttled()
        # The kernel adds up what all processors kept from a cgroup: one thread waits no longer than it waits.
        held_back = max(0.0, min(throttled - self._throttled, waited - self._waited))
        more = Waited(max(0.0, waited - self._waited - held_back), held_back)
        self._waited, self._throttled = waited, throttled
        return Waited() if moved else more

    def close(self) -> None:
        """Let go of the files."""
        for fd in (self._schedule, self._groups, *self._stats):
            if fd >= 0:
                os.close(fd)
        self._schedule = self._groups = -1
        self._stats = []

    def _read_throttled(self) -> float:
        return sum(throttled_seconds(_read(fd)) for fd in self._stats)

    def _look_up_groups(self) -> bool:
        """Whether the process is in other cgroups than before: nothing is known of them yet."""
        named = _read(self._groups)
        if named == self._named:
            return False
        self._named = named
        for fd in self._stats:
            os.close(fd)
        self._stats = [fd for path in stat_paths(named.decode()) if (fd := _open(path)) >= 0]
        return True


def stat_paths(cgroups: str) -> list[str]:
    """Of the cgroup that has its processors, and of all above it; some may not be there, in a container above all.

    Args:
        cgroups: what /proc/PID/cgroup says.
    """
    paths = []
    for line in cgroups.splitlines():
        number, controllers, folder = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            mount = _CGROUPS if number == "0" else f"{_CGROUPS}/cpu"
            parts = folder.strip("/").split("/") if folder != "/" else []
            paths += ["/".join([mount, *parts[:depth], "cpu.stat"]) for depth in range(len(parts) + 1)]
    return paths


def waited_seconds(schedstat: bytes) -> float:
    """Of /proc/PID/schedstat: nanoseconds on a processor, nanoseconds waiting for one, turns."""
    fields = schedstat.split()
    return int(fields[1]) * 1e-9 if len(fields) == 3 else 0.0


def throttled_seconds(stat: bytes) -> float:
    """Of a cgroup's cpu.stat: how long its quota has held it back."""
    for line in stat.splitlines():
        name, _, value = line.partition(b" ")
        if name in _UNITS:
            return int(value) * _UNITS[name]
    return 0.0


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _read(fd: int) -> bytes:
    with suppress(OSError):
        return os.pread(fd, 4096, 0)
    return b""
