"""Parity 1 on numpy, under its old name."""

from __future__ import annotations

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.codec.numpy_engine import PIECE_BYTES, NumpyEngine

__all__ = ["PIECE_BYTES", "XorCodec"]


def XorCodec() -> Codec:
    """The XOR codec."""
    return Codec(NumpyEngine(), "xor", 1)
