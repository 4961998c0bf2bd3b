"""Erasure codes: one linear primitive, ``Codec.combine``; encoding and rebuilding are both that call."""

from __future__ import annotations

from ftrain_snapshot.codec.base import Codec
from ftrain_snapshot.errors import CodecUnsupported

__all__ = ["Codec", "codec_for"]


def codec_for(parity: int) -> Codec:
    """The codec for that much parity. Raises CodecUnsupported if there is none here."""
    from ftrain_snapshot.codec.xor import XorCodec  # numpy loads only where something is coded

    if parity == XorCodec.parity:
        return XorCodec()
    raise CodecUnsupported(f"parity {parity} is not supported: use --parity {XorCodec.parity} (or 0 for none)")
