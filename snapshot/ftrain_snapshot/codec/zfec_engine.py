"""zfec (extra ``zfec``: GPL-2+ or TGPPL, so never required): products by zfec, their sums by numpy's XOR.

zfec has a matrix of its own and no call for another one. But a code of 2 data chunks is a straight line through
(0, first) and (1, second), and its chunk number i is that line's value at 2^(i-1): with a first chunk of zeros, that is
2^(i-1) times the second. So zfec's own arithmetic gives any product, hence any generator, and what it stores can be
decoded anywhere. Coefficients of 0 and 1 need no product. Fresh bytes for a product are a piece long, not longer.

Only ``Encoder.encode`` is called, with one number that is in range and immutable blocks, which keeps clear of zfec's
pitfalls: ``Decoder.decode`` reorders the caller's list but not the numbers, loops for ever on a number given twice, and
returns garbage for one out of range.
"""

from __future__ import annotations

from collections.abc import Sequence

from ftrain_snapshot.codec.base import Buffer, Engine, Rows, check_fits
from ftrain_snapshot.codec.generator import logarithm
from ftrain_snapshot.codec.numpy_engine import NumpyEngine
from ftrain_snapshot.errors import CodecUnsupported

PIECE_BYTES = 64 << 10
INSTALL_HINT = "pip install 'ftrain[zfec]'"

_ZEROS = bytes(PIECE_BYTES)
_CHUNKS = 256
"""As many as the field has values, so that every coefficient is some chunk's."""


class ZfecEngine(Engine):
    """zfec's arithmetic. Raises CodecUnsupported if it is not installed."""

    name = "zfec"

    def __init__(self) -> None:
        try:
            from zfec import Encoder
        except ImportError as error:
            raise CodecUnsupported(f"no zfec here ({error}): {INSTALL_HINT}") from error
        self._line = Encoder(2, _CHUNKS)
        self._sums = NumpyEngine()

    def combine(self, rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> None:
        """See Engine."""
        length = check_fits(rows, sources, destinations)
        if all(c < 2 for row in rows for c in row):
            return self._sums.combine(rows, sources, destinations)
        froms, intos = ([memoryview(b).cast("B") for b in buffers] for buffers in (sources, destinations))
        for start in range(0, length, PIECE_BYTES):
            part = slice(start, min(length, start + PIECE_BYTES))
            ins = [f[part] for f in froms]
            self._piece(rows, ins, [i[part] for i in intos])

    def _piece(self, rows: Rows, sources: list[memoryview], destinations: list[memoryview]) -> None:
        terms: list[Buffer] = list(sources)
        plain = [[c if c < 2 else 0 for c in row] for row in rows]
        for i, row in enumerate(rows):
            for source, c in zip(sources, row, strict=True):
                if c > 1:
                    terms.append(self._product(c, source))
                    for j, line in enumerate(plain):
                        line.append(int(i == j))
        self._sums.combine(plain, terms, destinations)

    def _product(self, coefficient: int, source: memoryview) -> bytes:
        blocks = (_ZEROS[: source.nbytes], source)
        product: bytes = self._line.encode(blocks, (logarithm(coefficient) + 1,))[0]
        return product
