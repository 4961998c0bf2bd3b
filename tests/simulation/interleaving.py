"""Real, blocking code of several processes, interleaved by a seed: one actor runs at a time, until it looks around.

An actor is a function in a thread of its own that is let run from one `Stage.switch` to the next. Time is made up: it
goes on by a little with each turn, and to the next one's waking when nobody else can run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from random import Random

TURN_SECONDS = 20e-6
_STUCK_SECONDS = 20.0


class Ended(BaseException):
    """Raised in actors that are killed."""


class _Actor:
    def __init__(self, stage: Stage, name: str, body: Callable[[], None]) -> None:
        self.name, self.turn = name, threading.Lock()
        self.turn.acquire()
        self.wakes_at: Callable[[], float] = lambda: 0.0
        """When it can go on; infinite: not before somebody else does something."""
        self.over = self.killed = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._live, args=(stage, body), name=name, daemon=True)

    def _live(self, stage: Stage, body: Callable[[], None]) -> None:
        self.turn.acquire()
        try:
            if not self.killed:
                body()
        except Ended:
            pass
        except BaseException as error:  # the stage raises it
            self.error = error
        self.over = True
        if not self.killed:
            stage.done.release()


class Stage:
    """Actors and their time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self.done = threading.Lock()
        self.done.acquire()
        self._actors: list[_Actor] = []
        self._at_turn: _Actor | None = None

    def add(self, name: str, body: Callable[[], None]) -> None:
        """One more actor; it begins with `run`."""
        self._actors.append(_Actor(self, name, body))

    # ---- for actors

    def clock(self) -> float:
        """As time.monotonic."""
        return self.now

    def switch(self) -> None:
        """Let others run first."""
        self.pause(0.0)

    def pause(self, seconds: float) -> None:
        """As time.sleep."""
        wakes_at = self.now + seconds
        self.wait(lambda: wakes_at)

    def wait(self, wakes_at: Callable[[], float]) -> None:
        """Until then, whatever that depends on; infinite: not before somebody else does something."""
        actor = self._at_turn
        assert actor is not None
        actor.wakes_at = wakes_at
        self.done.release()
        actor.turn.acquire()
        if actor.killed:
            raise Ended

    # ---- for the test

    def run(self, until: Callable[[], bool], seconds_max: float) -> None:
        """Until then, or until all actors are at their end; AssertionError if neither comes."""
        deadline = self.now + seconds_max
        for actor in self._actors:
            actor.thread.start()
        try:
            while not until() and (alive := [a for a in self._actors if not a.over]):
                assert self.now < deadline, f"no end: {[a.name for a in alive]} still run"
                wakes_at = [a.wakes_at() for a in alive]
                first = min(wakes_at)
                assert first < inf, f"deadlock of {[a.name for a in alive]}"
                self.now = max(self.now + TURN_SECONDS, first)
                self._give_turn(
                    self.random.choice([a for a, when in zip(alive, wakes_at, strict=True) if when <= self.now])
                )
        finally:
            self._end()

    def _give_turn(self, actor: _Actor) -> None:
        self._at_turn = actor
        actor.turn.release()
        assert self.done.acquire(timeout=_STUCK_SECONDS), f"{actor.name} does not come back"
        if actor.error is not None:
            raise actor.error

    def _end(self) -> None:
        for actor in self._actors:
            actor.killed = True
            if not actor.over:
                actor.turn.release()
            actor.thread.join(_STUCK_SECONDS)
