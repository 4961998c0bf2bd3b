"""What a virtual machine's host gives it of its processors' time.

A crowded host stops a machine for part of each 100 ms. What it takes so is in no column of /proc/stat, not even in
`steal`: all columns together are less than the time that went by. A figure from such a minute says little.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil


class Given(NamedTuple):
    """Processor time of all processors since boot, and when that was."""

    seconds: float
    at_seconds: float
    processors: int

    @classmethod
    def now(cls) -> Given:
        """As the kernel counts it."""
        times = psutil.cpu_times()
        given = sum(times) - times.steal - times.guest - times.guest_nice  # guests are in user and nice (proc(5))
        return cls(given, time.monotonic(), psutil.cpu_count() or 1)

    def share_since(self, before: Given) -> float:
        """Of the processor time that there was in between; a moment is too short to tell, and counts as all of it."""
        there_was = (self.at_seconds - before.at_seconds) * self.processors
        return min(1.0, (self.seconds - before.seconds) / there_was) if there_was > 0.1 else 1.0
