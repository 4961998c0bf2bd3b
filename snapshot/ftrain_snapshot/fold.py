"""Sums up the chunks of stripes as they arrive, from any source and in any order: parity being made, or chunks rebuilt.

Each chunk is combined into its stripe at once, while it is in cache, and only once. The first writes, later ones add:
the destination needs no clearing. Who is not heard of counts as zeros.

A sum may lie in the arena for a while before the rest of it comes, and is as precious as what it will be: its checksum
is compared before anything is added, or damage to it would become parity that looks sound.
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
        self._sums: dict[int, int] = {}

    def add(
        self, column: int, coefficient: int, stripe: int, body: memoryview, expected_sum: int, destination: memoryview
    ) -> bool:
        """Combine one chunk into ``destination``, the stripe's place, at least as long as any of its chunks.

        False: it had come before, and nothing is done. Where the sum so far is damaged, the stripe begins anew with
        this chunk: `came` says what is in it. Raises ChecksumMismatch if the bytes are not those of their source; the
        destination is as it was.
        """
        came = self._came.get(stripe, 0)
        if came >> column & 1:
            return False
        if checksum(body) != expected_sum:
            raise ChecksumMismatch(f"stripe {stripe}: {len(body)} bytes from source {column} are damaged")
        if came and checksum(destination[: self._lengths[stripe]]) != self._sums[stripe]:
            self.forget(stripe)
            came = 0
        length = len(body)
        target = destination[:length]
        if came:
            self._codec.combine(((1, coefficient),), (target, body), (target,))
        else:
            self._codec.combine(((coefficient,),), (body,), (target,))
            if length < len(destination):
                destination[length:] = bytes(len(destination) - length)
        self._came[stripe] = came | 1 << column
        self._lengths[stripe] = longest = max(length, self._lengths.get(stripe, 0))
        is_copy = not came and coefficient == 1
        self._sums[stripe] = expected_sum if is_copy else checksum(destination[:longest])
        return True

    def came(self, stripe: int) -> int:
        """Which columns have come, as bits."""
        return self._came.get(stripe, 0)

    def sum(self, stripe: int) -> int:
        """The checksum of what has been summed up, made when it was."""
        return self._sums[stripe]

    def forget(self, stripe: int) -> None:
        """Begin that stripe anew: the next chunk writes."""
        self._came.pop(stripe, None)
        self._lengths.pop(stripe, None)
        self._sums.pop(stripe, None)
