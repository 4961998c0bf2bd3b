"""Sums up chunks of a stripe as they arrive, in any interleaving of sources: parity being made, or a segment rebuilt.

Each chunk is combined into the destination at once, while it is in cache, and only once: a source's chunks come in
order, a repeated one is ignored, a gap is an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.errors import ChecksumMismatch, ProtocolError
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum


class Fold:
    """One destination, several sources (positions)."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._received: dict[int, int] = {}
        self._begun: set[int] = set()

    def add(self, source: int, offset: int, body: memoryview, expected_sum: int, destination: memoryview) -> None:
        """Combine one chunk of ``source`` into ``destination`` (which may end before the chunk does: padding).

        Raises ChecksumMismatch if the bytes are not those of their source, ProtocolError on a gap.
        """
        received = self._received.get(source, 0)
        if offset < received:
            return
        if offset != received or offset % CHUNK_BYTES or not body:
            raise ProtocolError(f"position {source} sent offset {offset} where {received} was due")
        if checksum(body) != expected_sum:
            raise ChecksumMismatch(f"bytes {offset} to {offset + len(body)} from position {source} are damaged")
        self._received[source] = offset + len(body)
        target = destination[offset : offset + len(body)]
        body = body[: len(target)]
        if offset in self._begun:
            self._codec.combine(((1, 1),), (target, body), (target,))
            return
        self._begun.add(offset)
        self._codec.combine(((1,),), (body,), (target,))
        rest = destination[offset + len(body) : offset + CHUNK_BYTES]
        rest[:] = bytes(len(rest))

    def is_complete(self, lengths: Mapping[int, int]) -> bool:
        """Whether all of each source has come (``lengths``: by position; an empty one sends nothing)."""
        return all(self._received.get(source, 0) >= length for source, length in lengths.items())
