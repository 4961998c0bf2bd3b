"""How fast ordinary bulk may go: a bucket that fills at the rate asked for, and never holds more than a burst.

Pure: the clock is passed in. Kept as the moment at which what was sent is paid for, so that nothing needs to be
refilled: a chunk may go when no debt is left, and idle time counts for at most a burst.
"""

from __future__ import annotations

BURST_SECONDS = 0.05
"""Idle time that may be made up for at once: longer than a wake-up is late, shorter than anybody notices."""


class Pace:
    """A cap on bytes per second; none at first."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._rate = 0
        self._credit_seconds = 0.0
        self._paid_at = 0.0

    def limit(self, bytes_per_second: int) -> None:
        """Cap it from now on; 0: no cap. The burst is 50 ms of the rate, but at least one chunk."""
        self._rate = bytes_per_second
        self._paid_at = 0.0
        if bytes_per_second:
            self._credit_seconds = max(0.0, BURST_SECONDS - self._chunk_bytes / bytes_per_second)

    def delay_seconds(self, now: float) -> float:
        """How long the next chunk must wait; 0: it may go."""
        return max(0.0, self._paid_at - now) if self._rate else 0.0

    def spend(self, sent_bytes: int, now: float) -> None:
        """So much goes now."""
        if self._rate:
            self._paid_at = max(self._paid_at, now - self._credit_seconds) + sent_bytes / self._rate
