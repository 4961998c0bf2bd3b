"""A few words of each lazy tensor, read at commit and looked for in the copy.

A write by way of ``.data`` between commit and copy moves no mark, and comparing all bytes would cost the copy that
laziness saves. So some words of each piece of up to 1 MiB are read when the state is committed, at places that
change from capture to capture, by one gather over the process's own memory, and compared when the copy is there.

What this sees: any write that changes much of a tensor (a scaling, an average, noise, a reload). What it may miss:
one that changes a few elements of a large tensor, and that only where it comes after a commit and before the next
step by way of ``.data``. Writes that torch counts (``_version``) are all seen, by the flight.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ftrain.plan import Plan
from ftrain_snapshot.manifest import CHUNK_BYTES

WORD_BYTES = 4
WORDS_PER_PIECE_MAX = 16
BYTES_PER_WORD = 32 << 10
"""One more word of a piece is read for so many bytes, but one at least."""
_FIRST_ADDRESS = 4096


class _Memory:
    """All of the process's address space as words: read only where something is known to lie."""

    __array_interface__: ClassVar[dict[str, Any]] = {
        "data": (_FIRST_ADDRESS, True),
        "shape": (1 << 45,),
        "typestr": "<u4",
        "version": 3,
    }


_MEMORY = np.asarray(_Memory())
Addresses = np.ndarray[tuple[int], np.dtype[np.int64]]


class Samples:
    """Where a plan's lazy tensors in main memory are looked at."""

    def __init__(self, plan: Plan) -> None:
        # Homes are aligned; the odd tensor that is not cannot be compared word by word.
        rows = [
            row
            for rows in plan.lazy_rows
            for row in rows
            if len(plan.views[row.tensor]) and plan.addresses[row.tensor] % WORD_BYTES == 0
        ]
        starts = np.array([plan.addresses[row.tensor] + row.start for row in rows], np.int64)
        ends = starts + np.array([row.length for row in rows], np.int64)
        first = starts // WORD_BYTES
        words = ends // WORD_BYTES - first
        counts = np.minimum(words, np.minimum(1 + words * WORD_BYTES // BYTES_PER_WORD, WORDS_PER_PIECE_MAX))
        self._index = np.repeat(np.array([row.tensor for row in rows], np.int64), counts)
        self._first = np.repeat(first, counts)
        self._words = np.repeat(words, counts)
        ordinal = np.arange(len(self._index)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._step = ordinal * self._words // np.repeat(counts, counts)
        self._to_unit = np.repeat(np.array([row.offset for row in rows], np.int64) - starts, counts)
        self._random = np.random.Generator(np.random.PCG64())  # of its own: the user's generators are state
        self._values = np.empty(0, np.uint32)
        self._choose()

    def take(self) -> None:
        """Read the tensors as they are now."""
        self._values = _MEMORY.take(self._places)

    def differing(self, homes: list[int], home_of: Addresses) -> set[int]:
        """The tensors whose copies are not as read: ``homes`` are addresses, ``home_of`` gives each chunk's."""
        unit = self._at + self._to_unit
        copies = np.array(homes, np.int64)[home_of[unit // CHUNK_BYTES]] + unit
        found = set(self._index[_MEMORY.take(_place_of(copies)) != self._values].tolist())
        self._choose()
        return found

    def _choose(self) -> None:
        """Where to look the next time: chosen in the background, so that a commit need not."""
        shift = int(self._random.integers(1 << 30))
        self._at: Addresses = (self._first + (self._step + shift) % np.maximum(self._words, 1)) * WORD_BYTES
        self._places = _place_of(self._at)


def _place_of(addresses: Addresses) -> Addresses:
    """Among the words of `_MEMORY`."""
    places: Addresses = (addresses - _FIRST_ADDRESS) // WORD_BYTES
    return places
