"""The matrices that decide what parity is, in pure Python: no engine has a say in what is stored.

A generator has k columns and k + m rows: the unit matrix, by which data chunks are stored as they are, over m parity
rows; any k of its rows can be inverted, so any k chunks of a stripe give the others. Named in what is stored:

- ``xor``, m = 1: ones (RAID-5).
- ``pq``, m = 2: ones, and 2^j in column j (RAID-6; H. P. Anvin, The mathematics of RAID-6). Few bits set, so
  that numpy alone computes it well; more than two rows of that kind would not do for every pattern of losses.
- ``cauchy``, m >= 3: 1 / (i + j), each column scaled so that the first row is ones, which spares multiplications
  (Bloemer et al. 1995; every square part of a Cauchy matrix can be inverted, and scaling does not change that).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from ftrain_snapshot.errors import CodecUnsupported

Matrix = tuple[tuple[int, ...], ...]

POLYNOMIAL = 0x11D
CHUNKS_MAX = 255

_EXP = [1] * 510
"""Powers of 2, twice over, so that sums of two logarithms need no reduction."""
for _i in range(1, 510):
    _EXP[_i] = _EXP[_i - 1] << 1 ^ (POLYNOMIAL if _EXP[_i - 1] & 0x80 else 0)
_LOG = [0] * 256
for _i in range(255):
    _LOG[_EXP[_i]] = _i


def multiply(a: int, b: int) -> int:
    """The product in the field."""
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def inverse(a: int) -> int:
    """1 / a. Raises ZeroDivisionError."""
    if a == 0:
        raise ZeroDivisionError("0 has no inverse")
    return _EXP[255 - _LOG[a]]


def logarithm(a: int) -> int:
    """The power of 2 that ``a``, not 0, is."""
    return _LOG[a]


def name_for(parity: int) -> str:
    """The generator for that much parity. Raises CodecUnsupported if it is less than 1."""
    if parity < 1:
        raise CodecUnsupported(f"there is nothing to compute for parity {parity}")
    return {1: "xor", 2: "pq"}.get(parity, "cauchy")


@lru_cache(maxsize=1024)
def rows(name: str, data: int, parity: int) -> Matrix:
    """The coefficients of each parity chunk over ``data`` data chunks.

    Raises CodecUnsupported for a name that is not known, and for sizes that its field or its kind does not allow.
    """
    if data < 1 or parity < 1 or data + parity > CHUNKS_MAX:
        raise CodecUnsupported(
            f"a stripe of {data}+{parity} chunks: 1 data chunk and 1 parity chunk at least, {CHUNKS_MAX} in all at most"
        )
    match name:
        case "xor" if parity == 1:
            return ((1,) * data,)
        case "pq" if parity == 2:
            return ((1,) * data, tuple(_EXP[j] for j in range(data)))
        case "cauchy" if parity >= 3:
            return tuple(
                tuple(multiply(data ^ j, inverse(i ^ j)) for j in range(data)) for i in range(data, data + parity)
            )
        case "xor" | "pq" | "cauchy":
            raise CodecUnsupported(f"generator {name!r} is not for parity {parity}: {name_for(parity)!r} is")
    raise CodecUnsupported(f"generator {name!r} is not known here: it may be of a newer ftrain")


def decode_rows(name: str, data: int, parity: int, present: Sequence[int], wanted: Sequence[int]) -> Matrix:
    """The coefficients over the chunks ``present`` of each chunk ``wanted``.

    Chunks 0..k-1 are data, k..k+m-1 parity. ``present``: any k different ones, in the order of the sources; ``wanted``:
    any, parity included. Raises ValueError for anything else, CodecUnsupported as ``rows``.
    """
    return _decode_rows(name, data, parity, tuple(present), tuple(wanted))


@lru_cache(maxsize=4096)
def _decode_rows(name: str, data: int, parity: int, present: tuple[int, ...], wanted: tuple[int, ...]) -> Matrix:
    every = _unit(data) + rows(name, data, parity)
    if len(present) != data or len(set(present)) != data or not {*present, *wanted} <= set(range(len(every))):
        raise ValueError(f"{data}+{parity} chunks: chunks {wanted} cannot be had from {present}")
    inverted = _inverted(tuple(every[p] for p in present))
    return tuple(_times(every[w], inverted) for w in wanted)


def _unit(size: int) -> Matrix:
    return tuple(tuple(int(i == j) for j in range(size)) for i in range(size))


def _times(row: Sequence[int], matrix: Matrix) -> tuple[int, ...]:
    out = [0] * len(matrix[0])
    for factor, line in zip(row, matrix, strict=True):
        if factor:
            out = [o ^ multiply(factor, value) for o, value in zip(out, line, strict=True)]
    return tuple(out)


def _inverted(matrix: Matrix) -> Matrix:
    """Gauss and Jordan. Raises ValueError if there is no inverse."""
    size = len(matrix)
    work = [[*row, *unit] for row, unit in zip(matrix, _unit(size), strict=True)]
    for column in range(size):
        pivot = next((r for r in range(column, size) if work[r][column]), None)
        if pivot is None:
            raise ValueError(f"the matrix has no inverse: {matrix}")
        work[column], work[pivot] = work[pivot], work[column]
        scale = inverse(work[column][column])
        lead = work[column] = [multiply(scale, value) for value in work[column]]
        for r in range(size):
            factor = work[r][column]
            if factor and r != column:
                work[r] = [value ^ multiply(factor, x) for value, x in zip(work[r], lead, strict=True)]
    return tuple(tuple(row[size:]) for row in work)
