"""What a sharded tensor (DTensor) is, in numbers: the whole, the mesh that it is spread over, and how.

A snapshot keeps of such a tensor this rank's local part, and beside it a `ShardSpec`. That is enough to build it again
on a mesh of the same ranks (sharded.py), and to say which boxes of the whole the part is (a durable checkpoint).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import msgspec

from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.placements import Cut, Placement, Shard, Spread, locate, right_to_left

REPLICATE, SHARD, STRIDED, PARTIAL = "replicate", "shard", "strided", "partial"
"""Kinds of placements; `STRIDED` is how FSDP2 says that it cuts what tensor parallelism has left."""


class Mesh(NamedTuple):
    """A device mesh."""

    device: str
    """Type of its devices; a local part may lie elsewhere (CPU offload)."""
    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    """Global ones, row by row."""
    names: tuple[str, ...] | None
    """Of its dimensions."""

    def __str__(self) -> str:
        names = self.names or ("",) * len(self.shape)
        sides = " x ".join(
            f"{name}={size}" if name else str(size) for name, size in zip(names, self.shape, strict=True)
        )
        return f"{sides} of ranks {_in_short(self.ranks)}"

    def coordinate(self, rank: int) -> tuple[int, ...]:
        """Where a rank is in it. Raises LayoutInvalid if it is not."""
        if rank not in self.ranks:
            raise LayoutInvalid(f"rank {rank} is not of the mesh {self}")
        place, found = self.ranks.index(rank), []
        for size in reversed(self.shape):
            place, at = divmod(place, size)
            found.append(at)
        return tuple(reversed(found))


class ShardSpec(NamedTuple):
    """How a tensor is spread over a mesh."""

    shape: tuple[int, ...]
    """Of the whole."""
    strides: tuple[int, ...]
    """Of the whole, in elements: what DTensor says of itself."""
    placements: tuple[tuple[str | int, ...], ...]
    """By mesh dimension: ``("replicate",)``, ``("shard", dim)``, ``("strided", dim, factor)``, ``("partial", op)``."""
    mesh: Mesh

    def __str__(self) -> str:
        kinds = [f"{kind}({', '.join(map(str, more))})" if more else str(kind) for kind, *more in self.placements]
        return f"{list(self.shape)} as [{', '.join(kinds)}] on a mesh {self.mesh}"

    def fits(self, other: ShardSpec) -> bool:
        """The same part of the same whole on each rank, whatever the dimensions of the mesh are called."""
        return self._replace(mesh=self.mesh._replace(names=None), strides=()) == other._replace(
            mesh=other.mesh._replace(names=None), strides=()
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Stands in a tree of values for a sharded tensor."""

    local: Any
    """This rank's part: a tensor, or what stands for one."""
    spec: ShardSpec


def replaced(value: Any, by: Callable[[Part], Any]) -> Any:
    """``value`` with something else for each `Part` in it; dictionaries and lists are changed in place."""
    if isinstance(value, Part):
        return by(value)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = replaced(item, by)
    elif isinstance(value, list | deque):
        for index, item in enumerate(value):
            value[index] = replaced(item, by)
    elif type(value) in (tuple, set, frozenset):
        return type(value)(replaced(item, by) for item in value)
    return value


class Box(NamedTuple):
    """A box of the whole, and where in the local part it lies. All by dimension, in elements."""

    offsets: tuple[int, ...]
    """In the whole."""
    starts: tuple[int, ...]
    """In the local part."""
    sizes: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Of the local part."""
        return tuple(slice(start, start + size) for start, size in zip(self.starts, self.sizes, strict=True))


def boxes_of(spec: ShardSpec, rank: int, local_shape: Sequence[int]) -> tuple[Box, ...]:
    """The boxes of the whole that a rank's local part consists of; none of an empty one.

    Raises LayoutInvalid if the placements do not make a part of that shape, or one that is still to be reduced.
    """
    coordinate = spec.mesh.coordinate(rank)
    cuts = [Cut(_cut(p), ranks, at) for p, ranks, at in zip(spec.placements, spec.mesh.shape, coordinate, strict=True)]
    axes = locate(spec.shape, right_to_left(cuts)).axes
    if (made := tuple(axis.size for axis in axes)) != tuple(local_shape):
        raise LayoutInvalid(f"{spec} makes a part {list(made)} for rank {rank}, it is {list(local_shape)}")
    found = []
    for spans in product(*(axis.spans for axis in axes)):
        found.append(Box(*(tuple(span[at] for span in spans) for at in range(3))))
    return tuple(found)


def is_first_holder(spec: ShardSpec, rank: int) -> bool:
    """Of the ranks that have the same part, this one is the first."""
    coordinate = spec.mesh.coordinate(rank)
    return all(at == 0 for at, placement in zip(coordinate, spec.placements, strict=True) if placement == (REPLICATE,))


def packed_spec(spec: ShardSpec) -> list[Any]:
    """As plain values, short: nearly all meshes are rows of ranks at equal steps."""
    mesh = spec.mesh
    steps = _steps(mesh)
    ranks = list(mesh.ranks) if steps is None else [mesh.ranks[0], *steps]
    names = None if mesh.names is None else list(mesh.names)
    placements = [list(placement) for placement in spec.placements]
    return [
        list(spec.shape),
        list(spec.strides),
        placements,
        mesh.device,
        list(mesh.shape),
        steps is None,
        ranks,
        names,
    ]


_Packed = tuple[
    tuple[int, ...],
    tuple[int, ...],
    tuple[tuple[str | int, ...], ...],
    str,
    tuple[int, ...],
    bool,
    tuple[int, ...],
    tuple[str, ...] | None,
]
_PACKED = msgspec.msgpack.Decoder(_Packed)


def unpacked_spec(packed: list[Any]) -> ShardSpec:
    """The way back. Raises ValueError for what is none."""
    return _unpacked_spec(msgspec.msgpack.encode(packed))


@lru_cache(maxsize=1024)  # layers are alike
def _unpacked_spec(encoded: bytes) -> ShardSpec:
    try:
        shape, strides, placements, device, sides, listed, ranks, names = _PACKED.decode(encoded)
    except msgspec.ValidationError as error:
        raise ValueError(f"no description of a sharded tensor: {error}") from error
    if not listed:
        if len(ranks) != 1 + len(sides) or not 0 < prod(sides) <= _RANKS_MAX:
            raise ValueError(f"no mesh: {sides} with {ranks}")
        places = product(*map(range, sides))
        ranks = tuple(ranks[0] + sum(map(int.__mul__, place, ranks[1:])) for place in places)
    spec = ShardSpec(shape, strides, placements, Mesh(device, sides, ranks, names))
    if (
        len(shape) != len(strides)
        or len(placements) != len(sides)
        or len(ranks) != prod(sides)
        or (names is not None and len(names) != len(sides))
        or not all(_is_placement(placement, len(shape)) for placement in placements)
    ):
        raise ValueError(f"a sharded tensor that contradicts itself: {spec!r}")
    return spec


_RANKS_MAX = 1 << 24


def _is_placement(placement: tuple[str | int, ...], dims: int) -> bool:
    match placement:
        case ("replicate",) | ("partial", str()):
            return True
        case ("shard", int(dim)):
            return 0 <= dim < dims
        case ("strided", int(dim), int(factor)):
            return 0 <= dim < dims and factor > 0
    return False


def _cut(placement: tuple[str | int, ...]) -> Placement:
    match placement:
        case ("replicate",):
            return Spread.REPLICATE
        case ("shard", int(dim)):
            return Shard(dim)
        case ("strided", int(dim), int(factor)):
            return Shard(dim, factor)
    raise LayoutInvalid(f"{placement} is a value that is still to be reduced")


def _steps(mesh: Mesh) -> tuple[int, ...] | None:
    """By dimension, how far apart neighbours' ranks are; None: not always as far."""
    steps, below = [], 1
    for size in reversed(mesh.shape):
        steps.append(mesh.ranks[below] - mesh.ranks[0] if size > 1 else 0)
        below *= size
    steps.reverse()
    places = product(*map(range, mesh.shape))
    expected = (mesh.ranks[0] + sum(map(int.__mul__, place, steps)) for place in places)
    return tuple(steps) if all(map(int.__eq__, mesh.ranks, expected)) else None


def _in_short(ranks: tuple[int, ...]) -> str:
    if len(ranks) > 2 and ranks == tuple(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
