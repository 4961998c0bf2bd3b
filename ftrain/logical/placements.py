"""From a tensor's global shape, a mesh and what each of its dimensions does, to what one rank holds.

The patterns are those of Universal Checkpointing (arXiv 2406.18820, section 4): a parameter is sharded, replicated,
one rank's alone, or to be averaged. DTensor's placements are two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from ftrain.logical.axes import Axis, Parts, Ranges, axis, shard, whole
from ftrain.logical.errors import LayoutInvalid


class Spread(Enum):
    """What a mesh dimension does to a tensor that it does not cut."""

    REPLICATE = "replicate"
    """All hold the same."""
    UNIQUE = "unique"
    """One coordinate has it, the others do not."""
    AVERAGE = "average"
    """Each has its own; the whole is their mean."""


@dataclass(frozen=True)
class Shard:
    """Each coordinate has its chunk of each part of a dimension."""

    dim: int
    parts: Parts = 1


Placement = Shard | Spread


class Cut(NamedTuple):
    """What one mesh dimension does, and where in it the holder is."""

    placement: Placement
    ranks: int
    coordinate: int


class Scope(Enum):
    """What several holders of the same box have."""

    SAME = "same"
    """The same bytes: any will do."""
    MEAN = "mean"
    """Different values, whose mean is the tensor."""
    OWN = "own"
    """Their own, which no other rank needs: generators, statistics."""


class Located(NamedTuple):
    """What one rank holds."""

    shape: tuple[int, ...]
    """Of the whole, without padding."""
    axes: tuple[Axis, ...]
    copies: int
    """How many ranks hold the same box, this one included."""
    scope: Scope


def locate(shape: Sequence[int], cuts: Sequence[Cut], trims: Mapping[int, int] | None = None) -> Located:
    """What is left of the whole for the holder once all cuts are made, in their order.

    ``trims``: by dimension, the true length; what ``shape`` has beyond it is padding.
    Raises LayoutInvalid if a cut does not fit the shape.
    """
    ranges: list[Ranges] = [whole(length) for length in shape]
    copies, scope = 1, Scope.SAME
    for placement, ranks, coordinate in cuts:
        if isinstance(placement, Shard):
            if not 0 <= placement.dim < len(shape):
                raise LayoutInvalid(f"there is no dimension {placement.dim} in shape {tuple(shape)}")
            ranges[placement.dim] = shard(ranges[placement.dim], placement.parts, ranks, coordinate)
        elif placement is not Spread.UNIQUE:
            copies *= ranks
            scope = Scope.MEAN if placement is Spread.AVERAGE and ranks > 1 else scope
    limits = trims or {}
    if wrong := [dim for dim, limit in limits.items() if not (0 <= dim < len(shape) and 0 <= limit <= shape[dim])]:
        raise LayoutInvalid(f"shape {tuple(shape)} cannot be trimmed to {limits[wrong[0]]} in dimension {wrong[0]}")
    axes = tuple(axis(each, limits.get(dim)) for dim, each in enumerate(ranges))
    return Located(tuple(limits.get(dim, length) for dim, length in enumerate(shape)), axes, copies, scope)


def right_to_left(cuts: Sequence[Cut]) -> list[Cut]:
    """The cuts of an FSDP2 parameter in the order in which FSDP2 makes them.

    FSDP2 cuts what tensor parallelism has left, and says so with a ``_StridedShard`` in front of the other's ``Shard``
    on that dimension. Read from left to right, as DTensor does, the two are the same where all is even, and not where
    it is uneven: of 7 rows on 3 x 2 ranks, FSDP2 gives row 6 to (2, 1), DTensor's reading to (2, 0).
    """
    ordered: list[Cut] = []
    later: list[Cut] = []
    for cut in cuts:
        placement = cut.placement
        if isinstance(placement, Shard) and placement.parts != 1:
            later.insert(0, cut._replace(placement=replace(placement, parts=1)))
        else:
            ordered.append(cut)
    return ordered + later


def sharded(cuts: Sequence[Cut]) -> bool:
    """Some mesh dimension cuts the tensor."""
    return any(isinstance(cut.placement, Shard) for cut in cuts)


def uncut(cuts: Sequence[Cut]) -> list[Cut]:
    """The same ranks, each with all of it: what counts an optimizer's steps for a sharded parameter."""
    return [cut._replace(placement=Spread.REPLICATE) if isinstance(cut.placement, Shard) else cut for cut in cuts]
