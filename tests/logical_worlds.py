"""Made-up worlds for tests of ftrain.logical: arrays cut by plain indexing, beside the descriptions of the same.

What a rank holds is computed here a second time, with arrays of indices and nothing from the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ftrain.logical.placements import Cut, Shard, Spread, locate
from ftrain.logical.reads import Planner, World
from ftrain.logical.scatter import scatter
from ftrain.logical.state import Extent, LogicalTensor, RankState

Array = NDArray[Any]
Memory = NDArray[np.uint8]
KEPT, FILLED = 0x33, 0x5A
"""What lies between tensors and where they are padded: in what ranks keep, and in memory that is filled."""


@dataclass(frozen=True)
class Made:
    """How one tensor is spread over a mesh."""

    mesh: tuple[int, ...]
    placements: tuple[Shard | Spread, ...]
    order: tuple[int, ...] = ()
    """Of its dimensions in memory, from the widest step to the narrowest; () is row-major."""
    padded: Mapping[int, int] = field(default_factory=dict)
    """By dimension: how much longer what is cut is than the tensor."""
    is_shared: bool = False
    """Replicas keep equal ranges of a part's bytes, instead of all of it each."""

    def coordinates(self, rank: int) -> tuple[int, ...]:
        return list(product(*map(range, self.mesh)))[rank]

    def part(self, array: Array, rank: int, padding: int) -> Array:
        """The rank's local tensor, in its memory order; where it is padded, its bytes are ``padding``."""
        widths = [(0, self.padded.get(dim, 0)) for dim in range(array.ndim)]
        filler = np.full(array.itemsize, padding, np.uint8).view(array.dtype)[0]
        local = np.pad(array, widths, constant_values=filler) if array.ndim else array
        for placement, ranks, place in zip(self.placements, self.mesh, self.coordinates(rank), strict=True):
            if isinstance(placement, Shard):
                old, parts = np.arange(local.shape[placement.dim]), placement.parts
                cuts = chunks(old, parts) if isinstance(parts, int) else np.split(old, np.cumsum(parts)[:-1])
                local = local.take(np.concatenate([chunks(cut, ranks)[place] for cut in cuts]), axis=placement.dim)
        order = self.order or tuple(range(array.ndim))
        return local.transpose(order).copy().transpose(np.argsort(order)) if array.ndim else local

    def describe(self, name: str, array: Array, rank: int) -> LogicalTensor:
        shape = [length + self.padded.get(dim, 0) for dim, length in enumerate(array.shape)]
        cuts = [Cut(*each) for each in zip(self.placements, self.mesh, self.coordinates(rank), strict=True)]
        located = locate(shape, cuts, {dim: array.shape[dim] for dim in self.padded})
        strides = tuple(step // array.itemsize for step in self.part(array, rank, KEPT).strides)
        return LogicalTensor(
            name, str(array.dtype), array.itemsize, located.shape, located.axes, strides, located.copies, located.scope
        )


def chunks(values: Array, count: int) -> list[Array]:
    step = max(1, -(-len(values) // count))
    return [values[index * step : (index + 1) * step] for index in range(count)]


def memory(array: Array) -> bytes:
    """An array's bytes in the order in which they lie."""
    return array.transpose(np.argsort([-step for step in array.strides], kind="stable")).tobytes()


def states_of(arrays: Mapping[str, Array], made: Mapping[str, Made], ranks: int) -> list[RankState]:
    """What each rank of a world holds, in live memory."""
    return [
        RankState(rank, tuple(made[name].describe(name, array, rank) for name, array in arrays.items()))
        for rank in range(ranks)
    ]


def snapshot_of(
    arrays: Mapping[str, Array], made: Mapping[str, Made], nodes: Sequence[int], lost: Sequence[int] = ()
) -> tuple[World, list[Memory]]:
    """A world of which the ranks are on these nodes, and the bytes that each of them keeps."""
    kept = [bytearray([KEPT] * 5) for _ in nodes]
    states = []
    for state in (live := states_of(arrays, made, len(nodes))):
        tensors = []
        for number, tensor in enumerate(state.tensors):
            array, how = arrays[tensor.name], made[tensor.name]
            data = memory(how.part(array, state.rank, KEPT))
            same = [other.rank for other in live if other.tensors[number].axes == tensor.axes]
            share, ways = (same.index(state.rank), len(same)) if how.is_shared else (0, 1)
            items = len(data) // array.itemsize
            low, high = (items * at // ways * array.itemsize for at in (share, share + 1))
            extents = (Extent(low, high, len(kept[state.rank])),) if low < high else ()
            kept[state.rank] += data[low:high] + bytes([KEPT] * 3)
            tensors.append(msgspec.structs.replace(tensor, extents=extents))
        states.append(RankState(state.rank, tuple(tensors)))
    world = World(tuple(states), dict(enumerate(nodes)), frozenset(lost))
    return world, [np.frombuffer(each, np.uint8) for each in kept]


def read(planner: Planner, kept: Sequence[Memory], target: RankState, node: int = 0) -> list[list[bytes]]:
    """Carry out a plan: the memory of each tensor; of those to be averaged, one for each value."""
    plan = planner.plan(target, node)
    filled = [
        [np.full(tensor.local_bytes, FILLED, np.uint8) for _ in range(plan.terms.get(index, 1))]
        for index, tensor in enumerate(target.tensors)
    ]
    for each in plan.reads:
        assert 0 <= each.start < each.stop <= len(kept[each.rank])
        scatter(each, kept[each.rank][each.start : each.stop], lambda tensor, term: filled[tensor][term])
    return [[value.tobytes() for value in values] for values in filled]
