"""Parts of one tensor, counted: what nobody has, and what several different parts have.

The edges of all parts, dimension by dimension, make a grid in which each part fills whole cells; so there are as many
cells as there are cuts, however large the tensor is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ftrain.logical.axes import Axis
from ftrain.logical.errors import StateUncovered
from ftrain.logical.state import Box

CELLS_MAX = 1 << 24

Axes = tuple[Axis, ...]
Edges = list[NDArray[np.int64]]


class Miscount(NamedTuple):
    """A box that is in no part, or in several."""

    box: Box
    parts: tuple[int, ...]
    """Which; none if it is missing."""


def miscounts(shape: Sequence[int], parts: Sequence[Axes]) -> list[Miscount]:
    """The first box in no part, and the first in several; none if each element is in exactly one.

    Raises StateUncovered if there are more cuts than can be counted.
    """
    if not prod(shape):
        return []
    edges = [
        np.array(
            sorted({0, length, *(e for axes in parts for s in axes[dim].spans for e in (s.start, s.start + s.length))})
        )
        for dim, length in enumerate(shape)
    ]
    sizes = [len(each) - 1 for each in edges]
    if prod(sizes) > CELLS_MAX:
        raise StateUncovered(f"a tensor of shape {list(shape)} is cut into more than {CELLS_MAX} cells: {sizes}")
    counts = np.zeros(sizes, np.int32)
    for axes in parts:
        counts[_cells(axes, edges)] += 1
    return [_first(wrong, edges, parts) for wrong in (counts == 0, counts > 1) if wrong.any()]


def _cells(axes: Axes, edges: Edges) -> tuple[Any, ...]:
    """Which cells a part fills, as an index into the grid."""
    runs = []
    for axis, cuts in zip(axes, edges, strict=True):
        inside = np.zeros(len(cuts) - 1, bool)
        for span in axis.spans:
            low, high = np.searchsorted(cuts, (span.start, span.start + span.length))
            inside[low:high] = True
        runs.append(inside)
    return np.ix_(*runs) if runs else ()


def _first(wrong: NDArray[np.bool_], edges: Edges, parts: Sequence[Axes]) -> Miscount:
    """The first wrong cell, grown along one dimension after another for as long as all that is added is wrong."""
    low = [int(each) for each in np.argwhere(wrong)[0]]
    high = [each + 1 for each in low]
    for dim in reversed(range(wrong.ndim)):
        while high[dim] < wrong.shape[dim]:
            beside = [slice(a, b) for a, b in zip(low, high, strict=True)]
            beside[dim] = slice(high[dim], high[dim] + 1)
            if not wrong[tuple(beside)].all():
                break
            high[dim] += 1
    start = tuple(int(cuts[at]) for cuts, at in zip(edges, low, strict=True))
    stop = tuple(int(cuts[at]) for cuts, at in zip(edges, high, strict=True))
    has = (index for index, axes in enumerate(parts) if all(map(_has, axes, start)))
    return Miscount(Box(start, tuple(b - a for a, b in zip(start, stop, strict=True))), tuple(has))


def _has(axis: Axis, index: int) -> bool:
    return any(span.start <= index < span.start + span.length for span in axis.spans)
