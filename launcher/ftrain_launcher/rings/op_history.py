"""How long the operations of one rank usually take: a window of durations for each class of them.

A class is an operation of one communicator, with one peer if it is point to point, on payloads of about one size
(powers of two, so that payloads of changing size have a history too). Only the newest durations count, and the first
one of a class never does: in it, connections are made and kernels compiled. What came in few steps only is no habit,
however often it came in these: a checkpoint's operations take each rank its own time.
"""

from __future__ import annotations

import math
from collections import deque

from ftrain_launcher.detect.records import Op

WINDOW = 256
"""So many of the newest durations of a class count."""
COMPLETIONS_MIN = 3
"""Before so many have completed, nothing is usual."""
STEPS_MIN = 3
"""Nor before it has come in so many earlier steps, where steps are marked."""
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


class OpHistory:
    """The durations of one rank's operations, by class; at most ``CLASSES_MAX`` windows of 10 kB."""

    def __init__(self) -> None:
        self._windows: dict[Class, deque[int]] = {}
        self._step = 0
        self._newest_step: dict[Class, int] = {}
        """The newest step in which it came."""
        self._earlier_steps: dict[Class, int] = {}
        """In how many before that one."""
        self._usual: dict[Class, float] = {}
        self._refreshes = 0

    def begin_step(self, number: int) -> None:
        """What is added from now on came in this step (1, 2, ...); without steps, completions alone are counted."""
        self._step = number

    def add(self, kind: Class, ns: int) -> None:
        """An operation of this class has completed; what is usual stays as it was until `refresh`."""
        window = self._windows.get(kind)
        if window is None:
            self._begin(kind)
            return
        window.append(ns)
        if self._newest_step[kind] != self._step:
            self._newest_step[kind] = self._step
            self._earlier_steps[kind] += 1

    def _begin(self, kind: Class) -> None:
        if len(self._windows) >= CLASSES_MAX:
            first = next(iter(self._windows))
            for known in (self._windows, self._newest_step, self._earlier_steps):
                del known[first]
        self._windows[kind] = deque(maxlen=WINDOW)
        self._newest_step[kind], self._earlier_steps[kind] = self._step, 0

    def refresh(self) -> None:
        """From now on what has been added counts; in a full window, at every eighth call, since sorting it costs."""
        self._refreshes += 1
        if self._refreshes % _FULL_EVERY == 0:
            self._usual.clear()
        for kind in [kind for kind in self._usual if len(self._windows.get(kind, ())) < WINDOW]:
            del self._usual[kind]

    def usual_seconds(self, kind: Class) -> float | None:
        """The 99th percentile of the newest durations; None: too few have completed to say."""
        usual = self._usual.get(kind)
        if usual is not None:
            return usual
        window = self._windows.get(kind)
        if window is None or len(window) < COMPLETIONS_MIN - 1:
            return None
        earlier = self._earlier_steps[kind] + (self._newest_step[kind] != self._step)
        if self._step and earlier < STEPS_MIN:
            return None
        usual = self._usual[kind] = sorted(window)[math.ceil(0.99 * len(window)) - 1] * 1e-9
        return usual
