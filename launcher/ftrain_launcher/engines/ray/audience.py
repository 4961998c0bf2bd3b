"""Pure: who is still to hear how a job ended, before the actor that owns it may go, and its name with it."""

from __future__ import annotations

LISTENS_SECONDS = 10.0
"""Whoever asked this lately asks again: drivers do twice a second, and wait as long for an answer that is slow."""


class Audience:
    """All that ask the owner of one job; ``now`` is monotonic."""

    def __init__(self) -> None:
        self._listening: dict[str, float] = {}
        self._told = False

    @property
    def told(self) -> bool:
        """Somebody has heard the job's end: for those who come now there is no such job."""
        return self._told

    def asks(self, listener: str, now: float) -> None:
        """It asks what the job says, and how it ended."""
        self._listening[listener] = now

    def tell(self, listener: str) -> None:
        """It has heard the job's end, and will not ask again."""
        self._told = True
        self._listening.pop(listener, None)

    def is_over(self, now: float) -> bool:
        """Somebody has heard the end, and nobody else is about to ask for it."""
        return self._told and all(now - asked >= LISTENS_SECONDS for asked in self._listening.values())
