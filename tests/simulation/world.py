"""Simulated time and a seeded dice: everything in a simulation happens through these two, so a seed is a schedule."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any


class World:
    """A clock and what is yet to happen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something at a time, after what was scheduled for the same time before."""
        self._scheduled += 1
        heapq.heappush(self._queue, (max(time, self.now), self._scheduled, do, arguments))

    def after(self, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        self.at(self.now + seconds, do, *arguments)

    def run(self, until: float, done: Callable[[], bool]) -> None:
        """Let things happen until a time, or until ``done``."""
        while self._queue and self._queue[0][0] <= until and not done():
            self.now, _, do, arguments = heapq.heappop(self._queue)
            do(*arguments)

    def between(self, low: float, high: float) -> float:
        """Some time from a range, in seconds."""
        return low + (high - low) * self.random.random()

    def chance(self, probability: float) -> bool:
        """Does it happen?"""
        return self.random.random() < probability
