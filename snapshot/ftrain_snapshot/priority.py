"""Less processor than training: for daemons, and for the writers of checkpoints.

Where the kernel schedules sessions against each other (autogroup, sched(7)), a process's nice value counts only
within its session, and the session has one of its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICENESS = 10
"""A tenth of what training gets where both want the same core; less, and protecting starves behind a busy job."""
_AUTOGROUP = Path("/proc/self/autogroup")


def give_way() -> None:
    """Run this process behind all that have not said so; and its session, if nobody else is in it yet."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # another kernel
            _AUTOGROUP.write_text(str(NICENESS))
