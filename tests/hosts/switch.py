"""The switch between pretend hosts: a process that reads frames from one card and writes them to another.

    switch.py CONTROL-FD        the cards come over that socket, then a table of faults whenever it changes

Every fault of the network happens here, never in a host's own stack, so hosts see silence and no error. Nothing is
asked of the kernel for that (netem, nftables): what is not in a table is passed on at once.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import random
import selectors
import socket
import sys
import time

FRAME_BYTES_MAX = 70_000
VNET_HEADER_BYTES = 10
BURST_FRAMES_MAX = 64
QUEUE_SECONDS_MAX = 0.2
"""What would wait longer for a slow link is dropped."""


class Switch:
    """Ports are the hosts' numbers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._cards: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, 0)
        self._buffer = bytearray(FRAME_BYTES_MAX)
        self._paths: dict[tuple[int, int], tuple[float, float]] = {}
        """(from, to): probability of loss, and delay in seconds."""
        self._rates: dict[int, float] = {}
        """Bytes a second into and out of a host."""
        self._free_at: dict[tuple[int, str], float] = {}
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._count = 0

    def run(self) -> None:
        """Pass frames on until the lab is gone."""
        while True:
            wait = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            for key, _ in self._selector.select(wait):
                if key.data:
                    self._receive(key.data)
                elif not self._obey():
                    return
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                _, _, port, frame = heapq.heappop(self._waiting)
                self._deliver(port, frame)

    def _obey(self) -> bool:
        message, cards, _, _ = socket.recv_fds(self._control, 1 << 20, 1)
        if not message:
            return False
        word = json.loads(message)
        if cards:
            self._cards[word["port"]] = cards[0]
            self._selector.register(cards[0], selectors.EVENT_READ, word["port"])
        else:
            self._paths = {(a, b): (loss, delay) for a, b, loss, delay in word["paths"]}
            self._rates = {int(port): rate for port, rate in word["rates"].items()}
        self._control.send(b"done")
        return True

    def _receive(self, port: int) -> None:
        for _ in range(BURST_FRAMES_MAX):
            try:
                length = os.readv(self._cards[port], [self._buffer])
            except (BlockingIOError, OSError):
                return
            to = self._buffer[VNET_HEADER_BYTES + 5]
            if to not in self._cards or to == port:
                continue  # Multicast, which nobody here needs.
            loss, delay = self._paths.get((port, to), (0.0, 0.0))
            if loss and random.random() < loss:
                continue
            frame = memoryview(self._buffer)[:length]
            if delay or self._rates:
                self._hold(port, to, delay, bytes(frame))
            else:
                self._deliver(to, frame)

    def _hold(self, port: int, to: int, delay: float, frame: bytes) -> None:
        """Let it wait for its turn on slow links, and then for the delay."""
        now = due = time.monotonic()
        for end, way in ((port, "out"), (to, "in")):
            if end in self._rates:
                due = max(due, self._free_at.get((end, way), 0.0))
                if due - now > QUEUE_SECONDS_MAX:
                    return
                due = self._free_at[end, way] = due + len(frame) / self._rates[end]
        self._count += 1
        heapq.heappush(self._waiting, (due + delay, self._count, to, frame))

    def _deliver(self, port: int, frame: bytes | memoryview) -> None:
        with contextlib.suppress(OSError):  # As a card does whose queue is full: the frame is lost.
            os.write(self._cards[port], frame)


if __name__ == "__main__":
    Switch(socket.socket(fileno=int(sys.argv[1]))).run()
