"""Who is turned away when too many knock at the daemon's door.

An honest peer proves itself within milliseconds; whoever is silent stays unproved. So a newcomer always gets in, and
the unproved one that has waited longest goes: 64 silent connections cannot lock a peer out, and to push one out in
the middle of its handshake takes 64 newcomers within its few round trips. (Refusing the newcomer, as a plain limit
does, would let the silent ones hold the door until their time is up.) Who is proved, and waits for its generation to
begin here, is never pushed out by who is not.
"""

from __future__ import annotations

from typing import Generic, TypeVar

UNPROVED_MAX = 64
PROVED_MAX = 1024
"""Peers that wait for their generation: as many as the gate of a large job hears from at once."""
Stranger = TypeVar("Stranger")


class Door(Generic[Stranger]):
    """The strangers at the door, in order of arrival."""

    def __init__(self, unproved_max: int = UNPROVED_MAX, proved_max: int = PROVED_MAX) -> None:
        self._unproved_max, self._proved_max = unproved_max, proved_max
        self._unproved: dict[Stranger, None] = {}
        self._proved: dict[Stranger, None] = {}

    def arrive(self, stranger: Stranger) -> Stranger | None:
        """One more has come; returns who must go for it."""
        self._unproved[stranger] = None
        return next(iter(self._unproved)) if len(self._unproved) > self._unproved_max else None

    def prove(self, stranger: Stranger) -> Stranger | None:
        """It knows the secret; returns who must go for it (among those who know it, too)."""
        if stranger in self._unproved:
            del self._unproved[stranger]
            self._proved[stranger] = None
        return next(iter(self._proved)) if len(self._proved) > self._proved_max else None

    def leave(self, stranger: Stranger) -> None:
        """It has gone, or is no stranger any more. Does nothing if it is not here."""
        self._unproved.pop(stranger, None)
        self._proved.pop(stranger, None)
