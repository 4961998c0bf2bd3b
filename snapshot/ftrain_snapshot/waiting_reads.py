"""Reads that may have to wait: for their turn, for holders that are not connected yet, or for a better moment.

A budget bounds how many are under way (each needs room for its answer, and scratch where it is decoded). What cannot be
had is tried again when one more holder has spoken, until all have, or it has taken too long; after that a few times
more, since sources that were asked for much at once may have been silent. Every read is answered once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ftrain_snapshot.degraded import Answer
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.messages import Incomplete, Refused, Reply

READS_MAX = 16
"""Reads under way at once: together 64 MiB, and as much scratch where it is decoded. The others wait."""
WAIT_SECONDS = 15.0
"""How long what cannot be had waits for holders that are not connected."""
AGAIN_SECONDS = 0.25
"""After which what failed although all holders are connected is tried again."""
TRIES_MAX = 3
_NOTHING = memoryview(b"")

Attempt = Callable[[Answer, Callable[[str], None]], None]
"""One try: answers, or says why not. Raises SnapshotIncomplete if it cannot be had now, ValueError if it never can."""


class WaitingReads:
    """All reads of one kind, on one node."""

    def __init__(self, loop: Loop, is_all_heard: Callable[[], bool]) -> None:
        """``is_all_heard``: nobody is left to wait for."""
        self.loop, self.is_all_heard = loop, is_all_heard
        self._open: set[_Read] = set()
        self._queue: deque[_Read] = deque()

    @property
    def is_busy(self) -> bool:
        """Somebody waits for bytes."""
        return bool(self._open)

    def add(self, attempt: Attempt, answer: Answer) -> None:
        """Carry it out, now or as soon as it can be."""
        self._queue.append(_Read(self, attempt, answer))
        self._next()

    def go_on(self) -> None:
        """A holder has spoken: what waits is tried again."""
        for read in list(self._open):
            read.go_on()

    def close(self, reason: str) -> None:
        """Answer all that are left with that."""
        left = [*self._open, *self._queue]
        self._queue.clear()
        for read in left:
            read.end(Incomplete(reason))

    def _next(self) -> None:
        while self._queue and len(self._open) < READS_MAX:
            read = self._queue.popleft()
            self._open.add(read)
            read.begin()

    def over(self, read: _Read) -> None:
        """It has been answered: another one may begin."""
        if read in self._open:
            self._open.discard(read)
            self._next()


class _Read:
    """What one client asked for."""

    def __init__(self, reads: WaitingReads, attempt: Attempt, answer: Answer) -> None:
        self._reads, self._attempt, self._answer = reads, attempt, answer
        self._tries = 0
        self._deadline = 0.0
        self._timer: Timer | None = None
        self._over = False

    def begin(self) -> None:
        self._deadline = self._reads.loop.now() + WAIT_SECONDS
        self._try()

    def go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._try()

    def _try(self) -> None:
        self._tries += self._reads.is_all_heard()
        try:
            self._attempt(self.end, self._not_now)
        except SnapshotIncomplete as error:
            self._not_now(str(error))
        except ValueError as error:
            self.end(Refused(str(error)))

    def _not_now(self, reason: str) -> None:
        wait_seconds = self._deadline - self._reads.loop.now()
        if self._reads.is_all_heard():
            wait_seconds = AGAIN_SECONDS if self._tries < TRIES_MAX else 0.0
        if wait_seconds <= 0:
            self.end(Incomplete(reason))
        elif not self._over:
            self._timer = self._reads.loop.later(wait_seconds, self.go_on)

    def end(self, reply: Reply, body: memoryview = _NOTHING) -> None:
        """Answer."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._answer(reply, body)
        self._reads.over(self)
