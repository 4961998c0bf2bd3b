"""Erasure codes: one linear primitive, ``Codec.combine``; encoding and rebuilding are both that call."""

from __future__ import annotations

from ftrain_snapshot.codec.base import Codec, codec_for

__all__ = ["Codec", "codec_for"]
