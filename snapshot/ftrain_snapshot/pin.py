"""Pure: which snapshot is kept for the durable tier while it is read (DESIGN 5), and when the next one is due.

One version is *due* for every so many steps: the first safe one (protected, or sealed where there is no parity) from
which on another multiple of steps is done. It is pinned: the gate gives its slot to nobody until it is told that the
snapshot is on storage, or will not be. Training never waits for that: at most one is pinned, so two slots are left for
the others to take turns in. A version that is due meanwhile is passed over, never queued: the newest one is pinned
when the pin is free again. A version that is *asked for*, since the job is to end, is due whatever the interval. And
where both other slots are needed (what was sealed last could not be protected), it is the pin that gives way.
"""

from __future__ import annotations

from ftrain_snapshot.membership import Membership
from ftrain_snapshot.words import SnapshotId


class Pin:
    """The gate's pin, for one generation."""

    def __init__(self, *, every: int = 0, newest: int | None = None) -> None:
        """``every`` how many steps one is due, 0: never; ``newest``: the version that counts as written already."""
        self.snapshot: SnapshotId | None = None
        """What is kept."""
        self._every = every
        self._done = self._passed_over = self._multiple(newest) if newest is not None else 0
        self._asked: int | None = None
        """The version from which on the first safe one is due."""
        self._news: list[tuple[str, int]] = []

    def ask(self, version: int) -> None:
        """This one, or the first safe one after it, is due, unless it is pinned already."""
        if self.snapshot is None or self.snapshot.version < version:
            self._asked = version

    def consider(self, safe: SnapshotId | None) -> None:
        """``safe`` is the newest snapshot that is as safe in memory as it will be."""
        if safe is None or not (self._is_asked_for(safe) or self._multiple(safe.version) > self._done):
            return
        if self.snapshot is None:
            if self._is_asked_for(safe):
                self._asked = None
            self.snapshot, self._done = safe, self._multiple(safe.version)
            self._news.append(("durable_due", safe.version))
        elif self._multiple(safe.version) > self._passed_over:
            self._passed_over = self._multiple(safe.version)
            self._news.append(("durable_passed_over", safe.version))

    def release(self, snapshot: SnapshotId) -> None:
        """It is written, or will not be; of no effect if something else is pinned."""
        if snapshot == self.snapshot:
            self.snapshot = None

    def give_way(self) -> None:
        """The slot is needed: whoever reads it will find that out."""
        if self.snapshot is not None:
            self._news.append(("durable_gave_way", self.snapshot.version))
            self.snapshot = None

    def news(self) -> list[tuple[str, int]]:
        """What happened since this was asked last: events for the log, with their versions."""
        news, self._news = self._news, []
        return news

    def _is_asked_for(self, safe: SnapshotId) -> bool:
        return self._asked is not None and safe.version >= self._asked

    def _multiple(self, version: int) -> int:
        return (version + 1) // self._every if self._every else 0


def newest_written(m: Membership) -> int | None:
    """The newest version that need not be written again: what is done anew from an older start is."""
    start = m.origin.snapshot if m.origin is not None else m.restore
    if m.durable_newest is None or start is None:
        return m.durable_newest
    return min(m.durable_newest, start.version)
