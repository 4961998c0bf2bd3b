"""Pure: when a driver tells that the actor of its job is silent, and when it gives both up, actor and cluster.

That actor runs on the head's machine. If that is lost, Ray says so last of all, when it ends the driver: after a minute
or three, and in words of its own. An actor that is silent while the head's store (GCS) answers is only slow, or its
machine is: then Ray will tell what became of it.
"""

from __future__ import annotations

TELL_SECONDS = 20.0
"""It answers twice a second; with seventy processes for two cores, after a dozen seconds."""
LOST_SECONDS = 30.0
"""After that, for a head that does not answer either: less than the minute after which Ray ends the driver."""


class Silence:
    """One driver's; ``now`` is monotonic."""

    def __init__(self, now: float) -> None:
        self._answered = self._head_answered = now
        self._told = False

    def answered(self, now: float) -> bool:
        """The actor answered; was its silence told?"""
        told, self._told, self._answered = self._told, False, now
        return told

    def begins(self, now: float) -> bool:
        """It is to be told now; from here on the head is to be asked."""
        if self._told or now - self._answered < TELL_SECONDS:
            return False
        self._told, self._head_answered = True, now
        return True

    @property
    def told(self) -> bool:
        """The actor is silent, and the user knows."""
        return self._told

    def is_lost(self, now: float, head_answers: bool) -> bool:
        """The head was asked: has it been silent, too, for long enough?"""
        if head_answers:
            self._head_answered = now
        return now - self._head_answered >= LOST_SECONDS
