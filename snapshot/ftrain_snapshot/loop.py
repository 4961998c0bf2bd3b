"""The daemon's one thread: waits for sockets, timers and signals, and gives long work a slice at a time.

One thread rather than one per peer: a snapshot's way from sealed to protected is a few wake-ups and no hand-off
(90 us each, FACTS 2), a generation is fenced by closing its sockets, and nothing needs a lock. Bulk bytes lose
nothing by it: the kernel's copies are their bound (FACTS 4), and a slice of other work is a MiB or few.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Generator
from itertools import count

Work = Generator[None, None, None]
"""Long work: yields wherever others may run."""


class Timer:
    """A call that is due later."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """It will not be called."""
        self.action = None


class Task:
    """Long work under way."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.done = False

    def step(self) -> None:
        """Run up to its next yield."""
        if not self.done:
            try:
                next(self._work)
            except StopIteration:
                self.done = True

    def cancel(self) -> None:
        """Stop at the yield where it is."""
        if not self.done:
            self.done = True
            self._work.close()


class Loop:
    """Sockets, timers and tasks, in one thread. All callbacks run in ``run``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        """Seconds, of a clock that only goes forward."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[bool, bool], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._tasks: deque[Task] = deque()
        self._running = True

    def watch(self, sock: socket.socket, handler: Callable[[bool, bool], None], *, write: bool = False) -> None:
        """Call ``handler(readable, writable)`` when ``sock`` is; errors and hang-ups count as readable."""
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if write else 0))

    def want_write(self, sock: socket.socket, write: bool) -> None:
        """Whether to be called when ``sock`` can be written."""
        self._epoll.modify(sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if write else 0))

    def forget(self, sock: socket.socket) -> None:
        """Watch it no more. Call before closing it."""
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def later(self, delay_seconds: float, action: Callable[[], None]) -> Timer:
        """Call ``action`` once, in ``delay_seconds``."""
        timer = Timer(action)
        heapq.heappush(self._timers, (self.now() + delay_seconds, next(self._order), timer))
        return timer

    def spawn(self, work: Work) -> Task:
        """Begin long work now; what is left after its first slice goes on between other events."""
        task = Task(work)
        task.step()
        if not task.done:
            self._tasks.append(task)
        return task

    def stop(self) -> None:
        """Leave ``run`` after this round."""
        self._running = False

    def run(self) -> None:
        """Serve until ``stop``."""
        while self._running:
            self.turn(self._wait_seconds())

    def turn(self, wait_seconds: float = 0.0) -> None:
        """One round: what has happened, what is due, one slice of long work; waits for the first at most so long."""
        for fd, events in self._epoll.poll(wait_seconds):
            handler = self._handlers.get(fd)
            if handler is not None:  # an earlier handler of this round may have closed it
                handler(bool(events & ~select.EPOLLOUT), bool(events & select.EPOLLOUT))
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.action is not None:
                timer.action()
        if self._tasks:
            task = self._tasks.popleft()
            task.step()
            if not task.done:
                self._tasks.append(task)

    def close(self) -> None:
        """Let go of everything, after all sockets are forgotten."""
        self._epoll.close()

    def _wait_seconds(self) -> float:
        while self._tasks and self._tasks[0].done:
            self._tasks.popleft()
        if self._tasks:
            return 0.0
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self.now()) if self._timers else -1.0
