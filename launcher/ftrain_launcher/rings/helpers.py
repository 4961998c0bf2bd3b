"""What keeps a sleeping process waiting: its other threads, and the processes that it has begun, may be starved.

A main thread that sleeps waits for no processor by itself. It may wait for somebody who does: the thread that copies
its snapshot before the optimizer may write, whoever holds the interpreter's lock, a worker of a data loader, a thread
of gloo. On a crowded machine that takes a second, and is no hang. A process has tens of threads, so they are counted
only while it stands still, outside of all operations or in one that is late: once when it has done so for a moment,
and again whenever it is reported. What makes its steps longer is looked for in the same way, where the main thread is
starved, too: on a machine that has processors for all nobody counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from ftrain_launcher.rings.starvation import waited_seconds

STILL_SECONDS = 0.2
"""Nobody is asked about before: less accuses nobody."""
_LATE_SECONDS = 0.4
"""Who is first counted later was not watched for long enough to say."""
_WINDOW_SECONDS = 0.1
"""Of a shorter time nothing is known."""
_ASLEEP = "SD"
COUNT_SECONDS = 1.0
"""Between two counts for the sake of steps: tens of threads, of which each costs some microseconds."""
STARVED_SHARE_MIN = 0.05
"""A main thread that waits for a processor for a smaller share of the time has helpers that hardly do."""

Waits = Mapping[str, float]
"""How long each thread or process has waited for a processor so far, in seconds."""


class Helpers:
    """One process's. ``read`` is asked for its helpers' waits."""

    def __init__(self, read: Callable[[], Waits]) -> None:
        self._read = read
        self._still_ns = 0
        self._first: tuple[int, Waits] | None = None
        """When they were counted first since the process moved, and what they had waited."""

    def moved(self, now_ns: int) -> None:
        """It was seen to move."""
        self._still_ns, self._first = now_ns, None

    def look(self, now_ns: int, letter: str) -> None:
        """It has not moved since it was last looked at; ``letter``: its main thread's."""
        if self._first is None and letter in _ASLEEP and now_ns - self._still_ns >= STILL_SECONDS * 1e9:
            self._first = now_ns, self._read()

    def starved_seconds(self, now_ns: int, idle_seconds: float) -> float:
        """How long of the time in which it has not moved one of them may have kept it waiting."""
        if self._first is None:
            return 0.0
        since_ns, before = self._first
        window_seconds = (now_ns - since_ns) * 1e-9
        if window_seconds < _WINDOW_SECONDS:
            # Its agent, which comes this late, was starved itself.
            return idle_seconds if idle_seconds - window_seconds >= _LATE_SECONDS else 0.0
        return idle_seconds * share_waited(before, self._read(), window_seconds)


class StarvedHelpers:
    """One process's, while its main thread is starved. ``read`` is asked for its helpers' waits."""

    def __init__(self, read: Callable[[], Waits]) -> None:
        self._read = read
        self._reported_ns: int | None = None
        self._counted: tuple[int, Waits] | None = None
        """When they were counted last while the main thread was starved, and what they had waited."""
        self._share = 0.0

    def share(self, now_ns: int, starved_seconds: float) -> float:
        """In which share of the time one of them was starved lately; 0: it is not known.

        Args:
            starved_seconds: how long the main thread was, since this was asked last.
        """
        last_ns, self._reported_ns = self._reported_ns, now_ns
        if last_ns is None or starved_seconds < STARVED_SHARE_MIN * (now_ns - last_ns) * 1e-9:
            self._counted, self._share = None, 0.0
        elif self._counted is None:
            self._counted = now_ns, self._read()
        elif now_ns - self._counted[0] >= COUNT_SECONDS * 1e9:
            since_ns, before = self._counted
            self._counted = now_ns, self._read()
            self._share = share_waited(before, self._counted[1], (now_ns - since_ns) * 1e-9)
        return self._share


def share_waited(before: Waits, after: Waits, window_seconds: float) -> float:
    """Of a time, in which share the one of them that waited longest for a processor did so."""
    longest = max((waited - before.get(name, 0.0) for name, waited in after.items()), default=0.0)
    return max(0.0, min(1.0, longest / window_seconds))


def waits_of(pid: int) -> Waits:
    """Of a process's threads but the main one, and of what the main one has begun. Who is gone is left out."""
    own = f"/proc/{pid}/task"
    found: dict[str, float] = {}
    with suppress(OSError):
        paths = [f"{own}/{thread}" for thread in os.listdir(own) if thread != str(pid)]
        paths += [f"/proc/{child}" for child in _read(f"{own}/{pid}/children").decode().split()]
        for path in paths:
            found[path] = waited_seconds(_read(f"{path}/schedstat"))
    return found


def _read(path: str) -> bytes:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)
    return b""
