"""One dimension of a tensor, cut up: which indices of the whole a holder has, and where in its own.

Whatever a layout does to a dimension is one operation, `shard`: cut what there is into parts, and give each rank its
chunk of each part. One part is DTensor's ``Shard``, s equal ones are its ``_StridedShard(split_factor=s)`` and a gated
MLP, parts of given lengths are a fused QKV. Cuts apply one after another, each to what the one before has left, so any
mesh is a sequence of them. Indices stay in rising order. All numbers are elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from ftrain.logical.errors import LayoutInvalid

Ranges = tuple[tuple[int, int], ...]
"""Indices of the whole dimension, as (start, stop): rising, none empty, none touching the next."""
Parts = int | tuple[int, ...]
"""So many equal parts (the last may be shorter: ``torch.chunk``), or the length of each."""


class Span(NamedTuple):
    """Indices of the whole that a holder has side by side."""

    start: int
    """In the whole dimension."""
    local: int
    """In the holder's."""
    length: int


class Axis(msgspec.Struct, frozen=True, array_like=True):
    """One dimension of what a holder has."""

    size: int
    """Its length there; what no span covers is padding."""
    spans: tuple[Span, ...]

    @property
    def covered(self) -> int:
        """How many indices of the whole it has."""
        return sum(span.length for span in self.spans)


def whole(length: int) -> Ranges:
    """All indices."""
    return ((0, length),) if length else ()


def length_of(ranges: Ranges) -> int:
    """How many indices these are."""
    return sum(stop - start for start, stop in ranges)


def chunk(length: int, count: int, index: int) -> tuple[int, int]:
    """The chunk of one rank out of ``count``, as ``torch.chunk`` cuts: equal ones rounded up; the last may be empty."""
    step = -(-length // count)
    return min(length, index * step), min(length, (index + 1) * step)


def shard(ranges: Ranges, parts: Parts, count: int, index: int) -> Ranges:
    """Rank ``index`` of ``count`` gets its chunk of each part. Raises LayoutInvalid for parts that do not add up."""
    kept: list[tuple[int, int]] = []
    begin = 0
    for length in part_lengths(length_of(ranges), parts):
        low, high = chunk(length, count, index)
        kept += _take(ranges, begin + low, begin + high)
        begin += length
    return _joined(kept)


def part_lengths(length: int, parts: Parts) -> Sequence[int]:
    """How long each part of a dimension is. Raises LayoutInvalid if the parts do not add up to it."""
    if isinstance(parts, tuple):
        if sum(parts) != length:
            raise LayoutInvalid(f"parts of {' + '.join(map(str, parts))} = {sum(parts)} do not make {length}")
        return parts
    cuts = [chunk(length, parts, index) for index in range(parts)]
    return [high - low for low, high in cuts]


def axis(ranges: Ranges, limit: int | None = None) -> Axis:
    """These indices, laid side by side; those from ``limit`` on are padding, not of the whole."""
    spans, local = [], 0
    for start, stop in ranges:
        kept = stop if limit is None else min(stop, limit)
        if start < kept:
            spans.append(Span(start, local, kept - start))
        local += stop - start
    return Axis(local, tuple(spans))


def in_common(one: Axis, other: Axis) -> Iterator[tuple[int, int, int]]:
    """Runs of indices that both have: (where in one, where in the other, how many)."""
    ours, theirs = iter(one.spans), iter(other.spans)
    a, b = next(ours, None), next(theirs, None)
    while a is not None and b is not None:
        low, high = max(a.start, b.start), min(a.start + a.length, b.start + b.length)
        if low < high:
            yield a.local + low - a.start, b.local + low - b.start, high - low
        if a.start + a.length <= high:
            a = next(ours, None)
        else:
            b = next(theirs, None)


def _take(ranges: Ranges, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The indices at positions ``low`` to ``high``."""
    position = 0
    for start, stop in ranges:
        first, last = max(low, position), min(high, position + stop - start)
        if first < last:
            yield start + first - position, start + last - position
        position += stop - start


def _joined(ranges: Sequence[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)
