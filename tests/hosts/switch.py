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
import struct
import sys
import time

FRAME_BYTES_MAX = 70_000
VNET_HEADER_BYTES = 10
ETHERNET_HEADER_BYTES = 14
TCP = 6
FLIPPED_BYTES_MIN = 1024
"""Smaller frames carry handshakes and small messages: a bit flipped there only cuts the connection."""
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
        self._flip_every = 0
        """Frames from or to these ports of which one is harmed; 0: none is."""
        self._flip_ports: frozenset[int] = frozenset()
        self._flip_turn = self._flipped = 0
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
            self._flip_every = word["flips"].get("every_frames", 0)
            self._flip_ports = frozenset(word["flips"].get("ports", ()))
        self._control.send(json.dumps({"flipped": self._flipped}).encode())
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
            if self._flip_every:
                self._flip(length)
            frame = memoryview(self._buffer)[:length]
            if delay or self._rates:
                self._hold(port, to, delay, bytes(frame))
            else:
                self._deliver(to, frame)

    def _flip(self, length: int) -> None:
        """Perhaps flip a bit of what a segment carries; its checksum is left to the receiver's card, which is ours."""
        ip = VNET_HEADER_BYTES + ETHERNET_HEADER_BYTES
        if self._buffer[ip + 9] != TCP:
            return
        segment = ip + 4 * (self._buffer[ip] & 15)
        data = segment + 4 * (self._buffer[segment + 12] >> 4)
        ports = struct.unpack_from("!HH", self._buffer, segment)
        if length - data < FLIPPED_BYTES_MIN or self._flip_ports.isdisjoint(ports):
            return
        self._flip_turn += 1
        if self._flip_turn % self._flip_every == 0:
            self._buffer[random.randrange(data, length)] ^= 1 << random.randrange(8)
            self._flipped += 1

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
