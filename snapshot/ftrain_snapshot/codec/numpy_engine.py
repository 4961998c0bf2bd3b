"""The engine that is always there: numpy's byte operations, on pieces that stay in the core's own cache.

A row of ones is XOR, as fast as memory. Any other is Horner's rule over the bits of its coefficients: double what
there is, add the sources that have the next lower bit, and so on: at most seven doublings a row, however many its
sources; the row 1, 2, 4, ... takes one a source. A doubling takes four passes over the piece (compare, multiply, add,
XOR; 8 GB/s). A row that differs from an earlier one by less than by itself is made from that one's sum: of two chunks
rebuilt from P and Q, the second is the XOR of the first, P and the rest. Table look-ups were measured too: ``np.take``
does 0.8 GB/s, ``bytes.translate`` holds the GIL.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ftrain_snapshot.codec.base import Buffer, Engine, Rows, check_fits

Bytes = NDArray[np.uint8]

PIECE_BYTES = 256 << 10
_REDUCTION = np.uint8(0x1D)
"""What doubling a byte whose highest bit is set adds: the polynomial without its own highest bit."""

Step = tuple[Sequence[int], int | None]
"""Coefficients, and the number of an earlier sum that is to be added."""


class NumpyEngine(Engine):
    """Slower than ISA-L beyond XOR, and never missing."""

    name = "numpy"

    def __init__(self) -> None:
        self._scratch = threading.local()

    def combine(self, rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> None:
        """See Engine."""
        length = check_fits(rows, sources, destinations)
        if length == 0:
            return
        froms = [np.frombuffer(s, np.uint8) for s in sources]
        intos = [np.frombuffer(d, np.uint8) for d in destinations]
        if any(not into.flags.writeable for into in intos):
            raise ValueError("a destination is read-only")
        places = {into.ctypes.data for into in intos}
        shared = [j for j, source in enumerate(froms) if source.ctypes.data in places]
        adds = len(rows) == 1 and len(shared) == 1 and rows[0][shared[0]] == 1
        steps = _steps(rows)
        for start in range(0, length, PIECE_BYTES):
            part = slice(start, start + PIECE_BYTES)
            ins, outs = [f[part] for f in froms], [i[part] for i in intos]
            if adds:
                self._add(rows[0], ins, outs[0], shared[0])
            elif shared:  # nothing may be overwritten before all rows have read it
                held = [self._piece(i + 1, len(out)) for i, out in enumerate(outs)]
                self._sums(steps, ins, held)
                for out, value in zip(outs, held, strict=True):
                    np.copyto(out, value)
            else:
                self._sums(steps, ins, outs)

    def _add(self, row: Sequence[int], sources: list[Bytes], out: Bytes, own: int) -> None:
        """``out`` is source number ``own``, with coefficient 1: add the others to it."""
        others = [(c, s) for j, (c, s) in enumerate(zip(row, sources, strict=True)) if j != own and c]
        if any(c != 1 for c, _ in others):
            total = self._piece(1, len(out))
            self._sum([c for c, _ in others], [s for _, s in others], total)
            others = [(1, total)]
        for _, source in others:
            np.bitwise_xor(out, source, out=out)

    def _sums(self, steps: list[Step], sources: list[Bytes], outs: list[Bytes]) -> None:
        for (row, earlier), out in zip(steps, outs, strict=True):
            if earlier is None:
                self._sum(row, sources, out)
            else:
                self._sum([*row, 1], [*sources, outs[earlier]], out)

    def _sum(self, row: Sequence[int], sources: list[Bytes], out: Bytes) -> None:
        """``out``, which is none of the sources, becomes their sum."""
        empty = True
        for bit in reversed(range(max(row, default=0).bit_length())):
            if not empty:
                self._double(out)
            terms = [s for c, s in zip(row, sources, strict=True) if c >> bit & 1]
            if empty and len(terms) > 1:
                np.bitwise_xor(terms[0], terms[1], out=out)
                terms = terms[2:]
            elif empty:
                np.copyto(out, terms.pop())
            empty = False
            for term in terms:
                np.bitwise_xor(out, term, out=out)
        if empty:
            out.fill(0)

    def _double(self, out: Bytes) -> None:
        carry = self._piece(0, len(out))
        np.less(out.view(np.int8), 0, out=carry.view(np.bool_))
        np.multiply(carry, _REDUCTION, out=carry)
        np.add(out, out, out=out)
        np.bitwise_xor(out, carry, out=out)

    def _piece(self, number: int, length: int) -> Bytes:
        """This thread's scratch piece ``number``; made once: fresh pages cost more than what is done with them."""
        held: list[Bytes] = self._scratch.__dict__.setdefault("pieces", [])
        while len(held) <= number:
            held.append(np.empty(PIECE_BYTES, np.uint8))
        return held[number][:length]


def _steps(rows: Rows) -> list[Step]:
    """Each row as it is, or as what it differs by from an earlier one, whichever has fewer bits to go through."""
    steps: list[Step] = []
    for i, row in enumerate(rows):
        differences: list[Step] = [([a ^ b for a, b in zip(row, rows[j], strict=True)], j) for j in range(i)]
        steps.append(min([(row, None), *differences], key=lambda step: max(step[0], default=0).bit_length()))
    return steps
