"""Pure: to which candidate an agent, or a launcher, turns when it has lost the controller.

For a while only to the one that it knows: its process is started again in a moment. Then to that one and all others, in
the same order everywhere, so that those that look for a controller meet at the first candidate that answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftrain_launcher.jobs import Endpoint

PATIENCE_SHARE = 0.3
"""Of the time that nodes go on without a controller, before they look for another."""


class Search:
    """One agent's."""

    def __init__(self, candidates: Sequence[Endpoint], known: Endpoint, patience_seconds: float) -> None:
        self._candidates = list(candidates)
        self._known = next((c for c in candidates if _is(c, known)), known)
        self._patience_seconds = patience_seconds

    def order(self, away_seconds: float) -> list[Endpoint]:
        """Whom to try, one after the other, after so long without a controller."""
        if away_seconds < self._patience_seconds:
            return [self._known]
        return [self._known, *(c for c in self._candidates if c is not self._known)]

    def found(self, candidate: Endpoint) -> None:
        """It leads, or is about to."""
        self._known = next((c for c in self._candidates if _is(c, candidate)), self._known)

    def hear_of(self, leader: int | None) -> bool:
        """A candidate that stands by says who leads; None: it does not know, so that the first one is next.

        Whether it is worth turning there at once.
        """
        before = self._known
        self._known = self._candidates[leader if leader is not None and leader < len(self._candidates) else 0]
        return leader is not None and self._known is not before


def _is(one: Endpoint, other: Endpoint) -> bool:
    return (one.host, one.port) == (other.host, other.port)
