"""Pure: which of the gate's reports, that come with every heartbeat, become events: the journal is not to fill up.

Only the first of each kind in a generation changes a decision, and what the durable tier waits for, or a node that is
to give its ranks away; the rest is for the record, now and then.
"""

from __future__ import annotations

from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.events import Progress
from ftrain_snapshot.status import DaemonStatus

_JOURNAL_SECONDS = 10.0


class ProgressFilter:
    """Knows the last report that became an event."""

    def __init__(self) -> None:
        self._generation = 0
        self._protected: int | None = None
        self._time = 0.0

    def take(self, status: DaemonStatus, durable: DurableTier, now: float, *, moves: bool = False) -> Progress | None:
        """The event that follows from what the gate of the generation that runs says; None: none.

        ``moves``: a node is to give its ranks away, once enough is protected.
        """
        awaited = durable.is_news(status.pinned) or (moves and status.levels.protected != self._protected)
        if status.levels.sealed is None and not awaited:
            return None
        protected = status.levels.protected
        first = self._generation != status.generation or (protected is not None and self._protected is None)
        if not (first or awaited or now - self._time > _JOURNAL_SECONDS):
            return None
        self._generation, self._protected, self._time = status.generation, protected, now
        return Progress(
            generation=status.generation,
            sealed=status.levels.sealed,
            protected=status.levels.protected,
            pinned=status.pinned,
            in_flight=status.in_flight,
        )
