"""The logical state of one rank: each tensor by its name and its place in the whole, and where its bytes lie.

A rank's part of a tensor is a product of `Axis`: along each dimension it has some spans of indices. So it consists of
boxes (one, mostly; several where a cut has parts), which lie in one local tensor with its own strides. Replicas may
share the keeping of that local tensor: each keeps some `Extent` of its bytes (REFT, arXiv 2310.12670).

All of this is numbers that travel in a manifest: any world can tell from it what any other holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

import msgspec
import xxhash

from ftrain.logical.axes import Axis
from ftrain.logical.placements import Scope


class Extent(NamedTuple):
    """Bytes ``start`` to ``stop`` of a local tensor lie at ``offset`` of what its rank keeps."""

    start: int
    stop: int
    offset: int


class Box(NamedTuple):
    """A box of the whole tensor, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class LogicalTensor(msgspec.Struct, frozen=True, array_like=True):
    """One rank's part of a tensor."""

    name: str
    """The same in every world: no wrapper's prefix, no rank."""
    dtype: str
    item_bytes: int
    shape: tuple[int, ...]
    """Of the whole, without padding."""
    axes: tuple[Axis, ...]
    strides: tuple[int, ...]
    """Of the local tensor, in elements."""
    copies: int = 1
    """How many ranks are meant to hold just this part; 0: its layout does not say, and their bytes must be compared."""
    scope: Scope = Scope.SAME
    like: str = ""
    """Of optimizer state: the parameter that it belongs to."""
    extents: tuple[Extent, ...] = ()
    """What this rank keeps of the local tensor, by rising start; nothing where that is memory to be filled."""

    @property
    def local_shape(self) -> tuple[int, ...]:
        """With padding."""
        return tuple(each.size for each in self.axes)

    @property
    def local_bytes(self) -> int:
        """Of the local tensor, padding included; where it is dense, that is all its memory."""
        return prod(self.local_shape) * self.item_bytes

    @property
    def elements(self) -> int:
        """Of the whole that this rank has."""
        return prod(each.covered for each in self.axes)

    def boxes(self) -> Iterator[tuple[Box, int]]:
        """The boxes of the whole that it consists of, and where in the local tensor's bytes each begins."""
        for spans in product(*(each.spans for each in self.axes)):
            steps = zip(spans, self.strides, strict=True)
            begin = sum(span.local * stride for span, stride in steps) * self.item_bytes
            yield Box(tuple(span.start for span in spans), tuple(span.length for span in spans)), begin


Held = tuple[int, LogicalTensor]
"""A rank, and its part."""


class RankState(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """All that one rank holds."""

    rank: int
    tensors: tuple[LogicalTensor, ...]
    aliases: dict[str, str] = {}
    """Other names of these tensors: tied weights."""
    parameters: dict[str, tuple[str, ...]] = {}
    """Of each optimizer, the names of its parameters in their order."""

    @cached_property
    def digest(self) -> int:
        """Two descriptions are the same if this is."""
        return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(self))

    @cached_property
    def by_name(self) -> dict[str, LogicalTensor]:
        """The tensors, by their own names."""
        return {tensor.name: tensor for tensor in self.tensors}


def kept(state: RankState, extents: Mapping[str, tuple[Extent, ...]]) -> RankState:
    """The same rank's state as a snapshot keeps it: at these places, and what has gaps in live memory is contiguous."""
    tensors = [
        msgspec.structs.replace(tensor, extents=extents.get(tensor.name, ()), strides=_dense_strides(tensor))
        for tensor in state.tensors
    ]
    return RankState(state.rank, tuple(tensors), state.aliases, state.parameters)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a row-major tensor, in elements."""
    return tuple(accumulate(reversed((*shape[1:], 1)), lambda step, size: step * max(1, size)))[::-1] if shape else ()


def _dense_strides(tensor: LogicalTensor) -> tuple[int, ...]:
    expected = 1
    for stride, size in sorted(zip(tensor.strides, tensor.local_shape, strict=True)):
        if size != 1 and stride != expected:
            return contiguous_strides(tensor.local_shape)
        expected *= size
    return tensor.strides
