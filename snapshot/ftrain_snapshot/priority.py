"""Less processor than training: for daemons, and for the writers of checkpoints.

Where the kernel schedules sessions against each other (autogroup, sched(7)), a process's nice value counts only
within its session, and the session has one of its own.

Behind, a daemon gets about a tenth of a core that training fills. If a snapshot costs it less than a tenth of a
training step, standing behind saves training nothing: the work is the same, and is only done later. A node's loss in
that time costs a sealed step. So then it takes its turns beside training, for as long as snapshots are so light.

While the job waits for a daemon (bytes that a rank starts from), that one has no training to give way to: whatever else
wants the cores then would hold up the recovery ten times as much as anybody else. So it takes its turns as before it
gave way. To take back a nice value is root's right (or RLIMIT_NICE's), a session's anybody's; where neither can be had
it stays behind.
"""

from __future__ import annotations

import os
import time
from collections import deque
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
LIGHT_SHARE = 0.1
"""A snapshot that costs no more of a training step leaves the daemon beside it: what it would get behind, too."""
SEEN_SNAPSHOTS = 16
"""So many are looked back on: long enough that a pause between two steps, or a daemon's other work, is one of many."""
SEEN_SNAPSHOTS_MIN = 3
"""Before that nothing is known."""
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


class Cost:
    """Pure: what a snapshot costs a process, compared with a training step. Versions are numbers of steps.

    The cost is the mean, whatever it was used for; the step is the median, for between two of them may lie a pause.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float, float] | None = None
        self._used: deque[float] = deque(maxlen=SEEN_SNAPSHOTS)
        self._steps: deque[float] = deque(maxlen=SEEN_SNAPSHOTS)

    def note(self, version: int, now: float, used_seconds: float) -> None:
        """A snapshot begins. ``used_seconds``: of a processor, all that this process has used."""
        if self._last is not None:
            before, at, used_before = self._last
            if version > before:  # else training went back, and what lies between is a recovery
                self._used.append(used_seconds - used_before)
                self._steps.append((now - at) / (version - before))
        self._last = version, now, used_seconds

    @property
    def is_light(self) -> bool:
        """Whether a snapshot costs little of a step."""
        seen = len(self._steps)
        if seen < SEEN_SNAPSHOTS_MIN:
            return False
        return sum(self._used) / seen <= LIGHT_SHARE * sorted(self._steps)[(seen - 1) // 2]


class Priority:
    """A daemon's: behind training, except while the job waits for it, or what it does is light."""

    def __init__(
        self, loop: Loop, set_behind: Callable[[bool], bool], used_seconds: Callable[[], float] = time.process_time
    ) -> None:
        """``set_behind``: as `Turns.set`; ``used_seconds``: what this process has used of a processor."""
        self._loop, self._set, self._used_seconds = loop, set_behind, used_seconds
        self._cost, self._light = Cost(), False
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

    def begin_snapshot(self, version: int) -> None:
        """A snapshot is being captured on this node: it is to be protected."""
        self._cost.note(version, self._loop.now(), self._used_seconds())
        if self._light != self._cost.is_light:
            self._light = not self._light
            if self._timer is None:
                self._turn()

    def _turn(self) -> None:
        """Be where it should be, and look again while somebody waits."""
        self._timer = None
        left = self._until - self._loop.now()
        wanted = left <= 0 and not self._light
        if self._behind != wanted and self._set(wanted):
            self._behind = wanted
        if self._behind != wanted:
            self._timer = self._loop.later(AGAIN_SECONDS, self._turn)
        elif left > 0:
            self._timer = self._loop.later(left, self._turn)
