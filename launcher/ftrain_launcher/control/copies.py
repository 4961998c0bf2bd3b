"""Pure: who has the journal, and which commands wait until they do.

What an event leads to is done once its line is on the controller's disk, and on those of all candidates that follow
the journal, so that whoever goes on from there knows of it. Commands keep their order. A follower that does not answer
in time follows no more, and must begin again: a slow or cut candidate holds the job up for a moment, once. Without its
own disk a controller can do nothing: what it decides waits for as long as that takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
"""A command, or whatever else waits."""
ANSWER_SECONDS_MAX = 1.0
"""How long a follower may take to write a line down."""


class Copies(Generic[T]):
    """One controller's: what it and its followers have of the journal, and the commands that wait for that."""

    def __init__(self, written: int) -> None:
        """``written``: bytes of the journal that are on its own disk."""
        self.written = written
        """So many are on that disk by now, as far as commands and followers are concerned."""
        self._lengths: dict[str, int] = {}
        """How many bytes each follower is known to have."""
        self._unwritten: deque[tuple[int, Sequence[T]]] = deque()
        """Commands, and the journal's length with the event that led to them: it is not on this disk yet."""
        self._held: deque[tuple[int, float, Sequence[T]]] = deque()
        """The same of those that are, and since when."""

    def write(self, length: int, now: float) -> None:
        """So many bytes are on this controller's disk."""
        self.written = length
        while self._unwritten and self._unwritten[0][0] <= length:
            at, commands = self._unwritten.popleft()
            self._held.append((at, now, commands))

    def follow(self, follower: str, length: int) -> None:
        """A follower has caught up, or has written more down."""
        self._lengths[follower] = length

    def leave(self, follower: str) -> None:
        """It follows no more."""
        self._lengths.pop(follower, None)

    def hold(self, length: int, commands: Sequence[T], now: float) -> None:
        """These are to be carried out once all have so many bytes."""
        if commands and length > self.written:
            self._unwritten.append((length, commands))
        elif commands:
            self._held.append((length, now, commands))

    def ready(self) -> list[T]:
        """The commands that need not wait any more, in order."""
        least, found = min(self._lengths.values(), default=self.written), list[T]()
        while self._held and self._held[0][0] <= least:
            found += self._held.popleft()[2]
        return found

    def overdue(self, now: float) -> list[str]:
        """The followers that have held commands up for too long."""
        if not self._held or now < self._held[0][1] + ANSWER_SECONDS_MAX:
            return []
        wanted = self._held[0][0]
        return [follower for follower, length in self._lengths.items() if length < wanted]
