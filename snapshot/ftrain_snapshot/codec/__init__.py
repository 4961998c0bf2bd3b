"""Erasure codes: one linear primitive, ``combine``; encoding, rebuilding and adding a chunk are all that call.

A ``Codec`` is an engine, which computes, and a generator, which says what: the matrix of the parity chunks. What is
stored names the generator and not the engine, so that a node that has another engine can decode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from ftrain_snapshot.codec import generator as generators
from ftrain_snapshot.codec.base import Buffer, Engine, Rows
from ftrain_snapshot.errors import CodecUnsupported

__all__ = ["CHOICES", "ENGINES", "Buffer", "Codec", "Engine", "Rows", "choose", "codec_for", "load"]

ENGINES = ("isal", "numpy", "zfec")
CHOICES = ("auto", *ENGINES)


@dataclass(frozen=True)
class Codec:
    """How the parity of a job is computed on this node."""

    engine: Engine
    """What computes here; a peer's may be another."""

    generator: str
    """The name of the matrix, the same on every node."""

    parity: int
    """m: how many lost chunks of a stripe it makes up for."""

    def rows(self, data: int) -> generators.Matrix:
        """The coefficients of each parity chunk over ``data`` data chunks. Raises CodecUnsupported for too many."""
        return generators.rows(self.generator, data, self.parity)

    def decode_rows(self, data: int, present: Sequence[int], wanted: Sequence[int]) -> generators.Matrix:
        """The coefficients over the k chunks ``present`` of each chunk ``wanted``: see ``generator.decode_rows``."""
        return generators.decode_rows(self.generator, data, self.parity, present, wanted)

    def combine(self, rows: Rows, sources: Sequence[Buffer], destinations: Sequence[memoryview]) -> None:
        """``destinations[i] = sum over j of rows[i][j] * sources[j]``: see ``Engine.combine``."""
        self.engine.combine(rows, sources, destinations)


def codec_for(parity: int, choice: str = "auto") -> Codec:
    """The codec for that much parity. Raises CodecUnsupported for parity below 1, and as ``choose``."""
    return Codec(choose(choice), generators.name_for(parity), parity)


def choose(choice: str = "auto") -> Engine:
    """The engine that ``--codec`` asks for; auto: ISA-L if it is here and works, else numpy.

    Raises CodecUnsupported, saying how to install it, for one that is not here.
    """
    if choice != "auto":
        return load(choice)
    try:
        return load("isal")
    except CodecUnsupported:
        return load("numpy")


@cache
def load(name: str) -> Engine:
    """The engine of that name, made once. Raises CodecUnsupported if it is not known or not here."""
    if name not in ENGINES:
        raise CodecUnsupported(f"there is no codec {name!r}: choose one of {', '.join(CHOICES)}")
    return _MAKERS[name]()


# numpy, ctypes and zfec load only where something is coded.


def _isal() -> Engine:
    from ftrain_snapshot.codec.isal import IsalEngine

    return IsalEngine()


def _numpy() -> Engine:
    from ftrain_snapshot.codec.numpy_engine import NumpyEngine

    return NumpyEngine()


def _zfec() -> Engine:
    from ftrain_snapshot.codec.zfec_engine import ZfecEngine

    return ZfecEngine()


_MAKERS: dict[str, Callable[[], Engine]] = {"isal": _isal, "numpy": _numpy, "zfec": _zfec}
