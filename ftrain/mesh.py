"""Sizes of a device mesh for the world as it is now: one dimension gives way, the others keep what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from numbers import Integral

from ftrain.errors import MeshImpossible


def mesh_sizes(names: Sequence[str], sizes: Mapping[str, int], ranks: int) -> tuple[int, ...]:
    """How long each dimension is; the one without a size takes what remains.

    Raises ValueError for a call that no number of ranks could fulfil, MeshImpossible for one that this cannot.
    """
    are_words = all(isinstance(name, str) and name for name in names)
    are_whole = all(isinstance(size, Integral) for size in sizes.values())
    if not (names and are_words and are_whole) or len(set(names)) != len(names) or set(sizes) - set(names):
        raise ValueError(
            'ctx.mesh needs names, each once, and whole numbers as sizes of these, as in ctx.mesh("dp", "tp", tp=2); '
            f"it got {', '.join(map(repr, names)) or 'no names'} and {sizes or 'no sizes'}"
        )
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
