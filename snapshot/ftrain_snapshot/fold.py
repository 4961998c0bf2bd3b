"""Sums up the chunks of stripes as they arrive, from any source and in any order: parity being made, or chunks rebuilt.

Each chunk is combined into its stripe at once, while it is in cache, and only once. The first writes, later ones add:
the destination needs no clearing. Who is not heard of counts as zeros.
"""

from __future__ import annotations

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.errors import ChecksumMismatch
from ftrain_snapshot.manifest import checksum


class Fold:
    """Stripes that are all made of the same sources, numbered from 0 (columns)."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._came: dict[int, int] = {}
        self._lengths: dict[int, int] = {}

    def add(
        self, column: int, coefficient: int, stripe: int, body: memoryview, expected_sum: int, destination: memoryview
    ) -> bool:
        """Combine one chunk into ``destination``, the stripe's place, at least as long as any of its chunks.

        False: it had come before, and nothing is done. Raises ChecksumMismatch if the bytes are not those of their
        source; the destination is as it was.
        """
        came = self._came.get(stripe, 0)
        if came >> column & 1:
            return False
        if checksum(body) != expected_sum:
            raise ChecksumMismatch(f"stripe {stripe}: {len(body)} bytes from source {column} are damaged")
        length = len(body)
        target = destination[:length]
        if came:
            self._codec.combine(((1, coefficient),), (target, body), (target,))
        else:
            self._codec.combine(((coefficient,),), (body,), (target,))
            if length < len(destination):
                destination[length:] = bytes(len(destination) - length)
        self._came[stripe] = came | 1 << column
        self._lengths[stripe] = max(length, self._lengths.get(stripe, 0))
        return True

    def came(self, stripe: int) -> int:
        """Which columns have come, as bits."""
        return self._came.get(stripe, 0)

    def length(self, stripe: int) -> int:
        """Of the longest chunk that has come; beyond it there are zeros."""
        return self._lengths.get(stripe, 0)

    def forget(self, stripe: int) -> None:
        """Begin that stripe anew: the next chunk writes."""
        self._came.pop(stripe, None)
        self._lengths.pop(stripe, None)
