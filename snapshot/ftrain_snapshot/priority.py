"""Less processor than training: for daemons, and for the writers of checkpoints.

Where the kernel schedules sessions against each other (autogroup, sched(7)), a process's nice value counts only
within its session, and the session has one of its own.

While the job waits for a daemon (bytes that a rank starts from), that one has no training to give way to: whatever else
wants the cores then would hold up the recovery ten times as much as anybody else. So it takes its turns as before it
gave way. To take back a nice value is root's right (or RLIMIT_NICE's), a session's anybody's; where neither can be had
it stays behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot.loop import Loop, Timer

NICENESS = 10
"""A tenth of what training gets where both want the same core; less, and protecting starves behind a busy job."""
HURRY_SECONDS = 0.5
"""For how long nobody has waited when it gives way again."""
AGAIN_SECONDS = 0.2
"""After which it is tried again where the kernel was busy: it takes ten such requests a second from all users."""
_AUTOGROUP = Path("/proc/self/autogroup")


def give_way() -> None:
    """Run this process behind all that have not said so; and its session, if nobody else is in it yet."""
    os.nice(NICENESS)
    _set_session(NICENESS)


def _set_session(niceness: int) -> bool:
    """False: not now."""
    if os.getsid(0) == os.getpid():
        try:
            _AUTOGROUP.write_text(str(niceness))
        except BlockingIOError:
            return False
        except OSError:  # another kernel
            pass
    return True


class Turns:
    """A process that gives way, and takes it back for a while."""

    def __init__(self) -> None:
        self._usual = os.getpriority(os.PRIO_PROCESS, 0)

    def set(self, behind: bool) -> bool:
        """Behind training, or beside it. False: try again a little later."""
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, self._usual + NICENESS * behind)
        return _set_session(NICENESS * behind)


class Priority:
    """A daemon's: behind training, except while the job waits for it."""

    def __init__(self, loop: Loop, set_behind: Callable[[bool], bool]) -> None:
        """``set_behind``: as `Turns.set`."""
        self._loop, self._set = loop, set_behind
        self._behind = False
        self._until = 0.0
        self._timer: Timer | None = None

    def give_way(self) -> None:
        """From now on: until then, training may be waiting for all that this process does."""
        self._until = self._loop.now()
        self._turn()

    def hurry(self) -> None:
        """Somebody waits for what is done now."""
        self._until = self._loop.now() + HURRY_SECONDS
        if self._timer is None:
            self._turn()

    def _turn(self) -> None:
        """Be where it should be, and look again as long as that is not behind."""
        self._timer = None
        left = self._until - self._loop.now()
        wanted = left <= 0
        if self._behind != wanted and self._set(wanted):
            self._behind = wanted
        if self._behind != wanted:
            self._timer = self._loop.later(AGAIN_SECONDS, self._turn)
        elif not wanted:
            self._timer = self._loop.later(left, self._turn)
