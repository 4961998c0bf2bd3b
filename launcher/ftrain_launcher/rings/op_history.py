"""How long the operations of one rank usually take: a window of durations for each class of them.

A class is an operation of one communicator, with one peer if it is point to point, on payloads of about one size
(powers of two, so that payloads of changing size have a history too). Only the newest durations count, and the first
one of a class never does: in it, connections are made and kernels compiled. What came in few steps only is no habit,
however often it came in these: a checkpoint's operations take each rank its own time.

How long the rank is usually outside of all operations before one of a class is told too: of each step the longest time
counts, so that it is what most steps have, and no pause that comes now and then.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from ftrain_launcher.detect.records import Op

WINDOW = 256
"""So many of the newest durations of a class count."""
COMPLETIONS_MIN = 3
"""Before so many have completed, nothing is usual."""
STEPS_MIN = 3
"""Nor before it has come in so many earlier steps, where steps are marked."""
GAPS_MIN, GAPS_WINDOW = 8, 32
"""Of so many steps the times outside are known before anything is usual; so many of the newest count."""
CLASSES_MAX = 256
"""Beyond these, the class that was begun first is forgotten."""
_FULL_EVERY = 8
DIRECT = frozenset((Op.SEND, Op.RECEIVE, Op.RECEIVE_ANY))
"""Operations that have a peer."""

Class = tuple[int, int, int, int]
"""Communicator, operation, peer (-1: none), size."""


def class_of(communicator: int, op: int, root: int, payload_bytes: int) -> Class:
    """The class of an operation. ``root``: or the peer of a send or receive."""
    return communicator, op, root if op in DIRECT else -1, payload_bytes.bit_length()


class _Seen:
    """What is known of one class."""

    __slots__ = ("earlier_steps", "gap_ns", "gaps", "newest_step", "usual_gap_ns", "window")

    def __init__(self, step: int) -> None:
        self.window: deque[int] = deque(maxlen=WINDOW)
        self.newest_step = step
        """The newest step in which it came."""
        self.earlier_steps = 0
        """In how many before that one."""
        self.gaps: deque[int] = deque(maxlen=GAPS_WINDOW)
        """The longest time outside before one of it, of each complete step but the first."""
        self.gap_ns = 0
        """The same, of the newest step."""
        self.usual_gap_ns: float | None = None

    def add(self, ns: int, gap_ns: int, step: int) -> None:
        """It has come once more."""
        self.window.append(ns)
        if self.newest_step != step:
            self.newest_step = step
            self.earlier_steps += 1
            if self.earlier_steps > 1:
                self.gaps.append(self.gap_ns)
                self.usual_gap_ns = median(self.gaps) if len(self.gaps) >= GAPS_MIN else None
            self.gap_ns = gap_ns
        elif gap_ns > self.gap_ns:
            self.gap_ns = gap_ns

    def is_habit(self, step: int) -> bool:
        """Whether it came often enough before to say what is usual, in this step; 0: steps are not marked."""
        enough = len(self.window) >= COMPLETIONS_MIN - 1
        return enough and (not step or self.earlier_steps + (self.newest_step != step) >= STEPS_MIN)


class OpHistory:
    """The durations of one rank's operations, by class; at most ``CLASSES_MAX`` windows of 10 kB."""

    def __init__(self) -> None:
        self._seen: dict[Class, _Seen] = {}
        self._step = 0
        self._usual: dict[Class, float] = {}
        self._refreshes = 0

    def begin_step(self, number: int) -> None:
        """What is added from now on came in this step (1, 2, ...); without steps, completions alone are counted."""
        self._step = number

    def add(self, kind: Class, ns: int, gap_ns: int = 0) -> None:
        """An operation of this class has completed; what is usual stays as it was until `refresh`."""
        seen = self._seen.get(kind)
        if seen is not None:
            seen.add(ns, gap_ns, self._step)
            return
        if len(self._seen) >= CLASSES_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[kind] = _Seen(self._step)

    def refresh(self) -> None:
        """From now on what has been added counts; in a full window, at every eighth call, since sorting it costs."""
        self._refreshes += 1
        if self._refreshes % _FULL_EVERY == 0:
            self._usual.clear()
        for kind in [kind for kind in self._usual if not self._is_full(kind)]:
            del self._usual[kind]

    def _is_full(self, kind: Class) -> bool:
        return kind in self._seen and len(self._seen[kind].window) == WINDOW

    def usual_seconds(self, kind: Class) -> float | None:
        """The 99th percentile of the newest durations; None: too few have completed to say."""
        usual = self._usual.get(kind)
        if usual is not None:
            return usual
        seen = self._seen.get(kind)
        if seen is None or not seen.is_habit(self._step):
            return None
        window = sorted(seen.window)
        usual = self._usual[kind] = window[math.ceil(0.99 * len(window)) - 1] * 1e-9
        return usual

    def usual_gap_seconds(self, kind: Class) -> float | None:
        """How long the rank is outside of all operations before one of this class, in most steps; None: not known."""
        seen = self._seen.get(kind)
        return None if seen is None or seen.usual_gap_ns is None else seen.usual_gap_ns * 1e-9
