"""Memory for answers, used again and again: fresh pages cost more than the bytes that are copied into them.

A room is given back by itself when nobody refers to it any more: neither the read that fills it nor the connection that
sends it has to say so.
"""

from __future__ import annotations

import mmap
import weakref

import numpy as np

from ftrain_snapshot.read_plan import READ_BYTES_MAX

SPARE_MAX = 8
"""Rooms that are kept for the next answers."""


class Rooms:
    """Rooms of one node, each for one answer."""

    def __init__(self) -> None:
        self._spare: list[mmap.mmap] = []

    def take(self, length: int) -> memoryview:
        """So many bytes, at most 4 MiB; what is in them is whatever was there before."""
        memory = self._spare.pop() if self._spare else mmap.mmap(-1, READ_BYTES_MAX, mmap.MAP_PRIVATE)
        room = np.frombuffer(memory, np.uint8, length)
        weakref.finalize(room, self._give_back, memory).atexit = False
        return room.data

    def _give_back(self, memory: mmap.mmap) -> None:
        if len(self._spare) < SPARE_MAX:
            self._spare.append(memory)
