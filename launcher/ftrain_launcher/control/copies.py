"""Pure: who else has the journal, and which commands wait until they do.

The candidates that stand by follow the journal. What an event leads to is done once all that follow have its line on
their disks, so that whoever takes over knows of it. One that does not answer in time follows no more, and must begin
again: a slow or cut candidate holds the job up for a moment, once.
"""

from __future__ import annotations

from collections import deque

from ftrain_launcher.job.events import Command

ANSWER_SECONDS_MAX = 1.0
"""How long a follower may take to write a line down."""


class Copies:
    """One controller's: its followers' lengths, and the commands that wait for them."""

    def __init__(self) -> None:
        self._lengths: dict[str, int] = {}
        """How many bytes each follower is known to have."""
        self._held: deque[tuple[int, float, list[Command]]] = deque()
        """Commands, from when, and the journal's length with the event that led to them."""

    def follow(self, follower: str, length: int) -> None:
        """A follower has caught up, or has written more down."""
        self._lengths[follower] = length

    def leave(self, follower: str) -> None:
        """It follows no more."""
        self._lengths.pop(follower, None)

    def hold(self, length: int, commands: list[Command], now: float) -> None:
        """These are to be carried out once all followers have so many bytes."""
        if commands:
            self._held.append((length, now, commands))

    def ready(self) -> list[Command]:
        """The commands that need not wait any more, in order."""
        least = min(self._lengths.values(), default=None)
        found: list[Command] = []
        while self._held and (least is None or self._held[0][0] <= least):
            found += self._held.popleft()[2]
        return found

    def overdue(self, now: float) -> list[str]:
        """The followers that have held commands up for too long."""
        if not self._held or now < self._held[0][1] + ANSWER_SECONDS_MAX:
            return []
        wanted = self._held[0][0]
        return [follower for follower, length in self._lengths.items() if length < wanted]
