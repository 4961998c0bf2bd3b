"""Pure: how often one and the same is asked about: soon again at first, ever more seldom while nothing changes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

ASK_AGAIN_SECONDS, ASK_AGAIN_SECONDS_MAX = 5.0, 60.0
"""After the first question, and after the last of many."""


@dataclass(slots=True)
class _Asked:
    """When it was last asked about, and how long it is until it may be again."""

    at: float
    wait_seconds: float


class Asking:
    """Questions, each about one subject."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, _Asked] = {}

    def may(self, subject: Hashable, now: float) -> bool:
        """Whether to ask now; if so, that counts as asked. ``now`` in seconds, of any one clock."""
        asked = self._asked.get(subject)
        if asked is not None and now < asked.at + asked.wait_seconds:
            return False
        wait_seconds = ASK_AGAIN_SECONDS
        if asked is not None and now < asked.at + 2 * asked.wait_seconds:  # it has not been well in between
            wait_seconds = min(2 * asked.wait_seconds, ASK_AGAIN_SECONDS_MAX)
        self._asked[subject] = _Asked(now, wait_seconds)
        return True
