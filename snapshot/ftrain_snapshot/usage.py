"""What the daemon has cost so far: processor time, and bytes by what they were for."""

from __future__ import annotations

import enum
import time


class Traffic(enum.IntEnum):
    """What a frame between daemons is for; travels in its prefix."""

    MESSAGE = 0
    PROTECT = 1
    """Ordinary bulk: chunks on their way to the holders of their parity."""
    RESTORE = 2
    """Urgent bulk: answers to who restores or rebuilds."""
    PROBE = 3
    """What is sent to see how fast it gets there."""


class Usage:
    """Counters of one daemon, from its start; they only grow."""

    def __init__(self) -> None:
        self.sent_bytes = [0] * len(Traffic)
        """Bodies handed to the network, by ``Traffic``; heads count as messages."""
        self.received_bytes = [0] * len(Traffic)
        """The same for what has come."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time of this process, user and system, all threads."""
        return time.process_time()
