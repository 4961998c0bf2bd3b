"""The seam between those who move bytes and those who compute on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview
Rows = Sequence[Sequence[int]]


class Engine(ABC):
    """Computes in GF(256) with the polynomial 0x11d, on buffers that belong to the caller.

    Any coefficients 0..255 in any engine, and the same bytes from all of them: what was coded by one can be decoded
    by another. Engines keep no state between calls that a second thread could see, and release the GIL.
    """

    name: str
    """What ``--codec`` calls it."""

    @abstractmethod
    def combine(self, rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> None:
        """``destinations[i] = sum over j of rows[i][j] * sources[j]``.

        Encoding, rebuilding and adding one chunk to a sum (``((1, c),), (sum, chunk), (sum,)``) are all this call.
        Buffers are contiguous and equally long, of any length and alignment, read-only sources included. A
        destination may be one of the sources, whole (not shifted); two destinations may not overlap. Nothing is
        allocated that grows with the data. Raises ValueError on shapes or coefficients that do not fit.
        """


def check_fits(rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> int:
    """The length of each buffer. Raises ValueError on shapes or coefficients that do not fit."""
    width = len(sources)
    if len(rows) != len(destinations) or any([len(row) != width for row in rows]):
        raise ValueError(f"{len(rows)} rows do not fit {width} sources and {len(destinations)} destinations")
    lengths = {memoryview(b).nbytes for b in (*sources, *destinations)}
    if len(lengths) > 1:
        raise ValueError(f"buffers must be equally long, not {sorted(lengths)}")
    if width and any([min(row) < 0 or max(row) > 255 for row in rows]):
        raise ValueError(f"coefficients are 0 to 255, not {rows}")
    return lengths.pop() if lengths else 0
