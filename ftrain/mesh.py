"""Sizes of a device mesh for the world as it is now: one dimension gives way, the others keep what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from ftrain.errors import MeshImpossible


def mesh_sizes(names: Sequence[str], sizes: Mapping[str, int], ranks: int) -> tuple[int, ...]:
    """How long each dimension is; the one without a size takes what remains.

    Raises ValueError for a call that no number of ranks could fulfil, MeshImpossible for one that this cannot.
    """
    unknown = sorted(set(sizes) - set(names))
    if unknown or len(set(names)) != len(names) or not names:
        raise ValueError(f"ctx.mesh needs names, each once, and sizes for these; it got {list(names)} and {sizes}")
    if any(size < 1 for size in sizes.values()):
        raise ValueError(f"sizes of a mesh are at least 1; ctx.mesh got {sizes}")
    free = [name for name in names if name not in sizes]
    if len(free) > 1:
        raise ValueError(f"ctx.mesh can leave one dimension free, not {len(free)}: give {free[-1]} a size")
    fixed = prod(sizes.values())
    if ranks % fixed or (not free and ranks != fixed):
        given = " x ".join(f"{name}={sizes[name]}" for name in names if name in sizes)
        needs = f"a mesh of {given} needs {'a multiple of ' * bool(free)}{fixed} ranks"
        raise MeshImpossible(needs, fixed, ranks, is_free=bool(free))
    return tuple(sizes.get(name, ranks // fixed) for name in names)
