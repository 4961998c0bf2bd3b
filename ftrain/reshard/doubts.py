"""Rules of `Context.layout` against what ranks hold: what bytes prove wrong, and what they only hint at.

Proof is a part that is said to be the same on several ranks and is not. Of all else there is a few numbers of each
part to go by, so these are doubts, and said as such:

    parts of a whole that are equal      each rank may have all of it (a norm that is said to be sharded)
    zeros at the end of what is cut      padding may not have been named (``trim``)
    values to be averaged, unlike        they may be parts of a whole

A tensor of one value (a new norm's ones, a bias's zeros) says nothing, whatever is claimed of it: it is *open*, to be
looked at again once steps have changed it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from ftrain.logical.axes import Axis
from ftrain.logical.placements import Scope
from ftrain.logical.state import LogicalTensor

SAMPLE_MAX = 256
"""So many elements of a part are compared."""
EQUAL_MIN = 16
"""Fewer elements than that may be equal by chance."""
UNLIKE_MIN = 64
LIKENESS_MIN = 0.5
"""Cosine of the angle between values that are to be averaged. Of 64 that have nothing in common it is 0.12, give or
take; of weights that started alike and went apart it is near 1."""


class Look(msgspec.Struct, frozen=True, array_like=True):
    """What one rank sees of its part of a tensor."""

    tensor: LogicalTensor
    sample: bytes
    """Some of its elements, spread over all of it, as float64."""
    zeros: dict[int, int]
    """By dimension in which it is cut: how many slices at its end are zeros throughout."""

    @property
    def values(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The sample."""
        return np.frombuffer(self.sample)

    @property
    def is_open(self) -> bool:
        """It says nothing yet."""
        return len(set(self.sample[at : at + 8] for at in range(0, len(self.sample), 8))) < 2


Seen = tuple[int, Look]
"""A rank, and its look."""
Sight = tuple[int, Mapping[str, Look]]
"""A rank, and all its looks by name."""


@torch.no_grad()
def look_at(tensor: LogicalTensor, memory: Tensor) -> Look:
    """One rank's part, in its memory."""
    memory = memory if memory.dim() else memory.reshape(1)
    count = min(memory.numel(), SAMPLE_MAX)
    picked = np.unravel_index(np.arange(count) * memory.numel() // max(count, 1), memory.shape)
    elements = memory[tuple(torch.from_numpy(at) for at in picked)]
    elements = torch.view_as_real(elements) if elements.is_complex() else elements
    zeros = {}
    for dim, axis in enumerate(tensor.axes):
        if axis.size < tensor.shape[dim] and memory.numel():
            zeros[dim] = _zeros_behind(memory.movedim(dim, 0))
    return Look(tensor, elements.double().cpu().numpy().tobytes(), zeros)


def _zeros_behind(memory: Tensor) -> int:
    if memory[-1].any():
        return 0
    filled = memory.flatten(1).any(1) if memory.dim() > 1 else memory != 0
    return len(memory) - 1 - int(filled.nonzero().max()) if filled.any() else len(memory)


def doubts(said: Sequence[Sight], is_new: bool) -> list[str]:
    """All that looks wrong. ``is_new``: no step has been taken yet."""
    found: list[str] = []
    for name, parts in _by_part(said).items():
        scope = next(iter(parts.values()))[0][1].tensor.scope
        if scope is Scope.MEAN and is_new:  # steps may move them apart
            found += _unlike(name, [seen for holders in parts.values() for seen in holders])
        elif scope is Scope.SAME:
            distinct = [holders[0] for holders in parts.values()]
            found += [*_equal(name, distinct), *(_padded(name, distinct) if is_new else ())]
    return found


def grown_apart(said: Sequence[Sight]) -> list[str]:
    """What ranks hold the same by its layout, and do not any more: steps have made it different."""
    return [
        f"{name}: by its layout ranks {_listed(holders)} hold the same, and training has made it different: if these "
        "are parts of a whole, say 'MESH_DIM: shard(DIM)', if each rank trains its own, 'average'"
        for name, parts in _by_part(said).items()
        for holders in parts.values()
        if holders[0][1].tensor.scope is Scope.SAME and len({look.sample for _, look in holders}) > 1
    ]


def _by_part(said: Sequence[Sight]) -> dict[str, dict[tuple[Axis, ...], list[Seen]]]:
    found: dict[str, dict[tuple[Axis, ...], list[Seen]]] = defaultdict(lambda: defaultdict(list))
    for rank, looks in said:
        for name, look in looks.items():
            found[name][look.tensor.axes].append((rank, look))
    return found


def _equal(name: str, parts: Sequence[Seen]) -> Iterator[str]:
    """Different parts of a whole with the same elements."""
    alike: dict[object, list[Seen]] = defaultdict(list)
    for rank, look in parts:
        if not look.is_open and len(look.values) >= EQUAL_MIN:
            alike[look.tensor.local_shape, look.sample].append((rank, look))
    for same in alike.values():
        if len(same) > 1:
            yield (
                f"{name}: by its layout ranks {_listed(same)} hold different parts of it, but these are equal: "
                "if each has all of it, say 'replicate', or no other number of ranks will get it right"
            )
            return


def _padded(name: str, parts: Sequence[Seen]) -> Iterator[str]:
    """Zeros at the end of a dimension that is cut; not of a tensor that is zeros throughout."""
    shape = parts[0][1].tensor.shape
    if all(look.is_open for _, look in parts):
        return
    for dim, length in enumerate(shape):
        end = length
        for _, look in sorted(parts, key=lambda seen: _start(seen[1].tensor.axes[dim]), reverse=True):
            axis = look.tensor.axes[dim]
            if len(axis.spans) != 1 or axis.covered != axis.size or axis.spans[0].start + axis.size != end:
                continue  # a fused dimension, one that is trimmed, or another holder of the same indices
            zeros = look.zeros.get(dim, 0)
            end -= zeros
            if zeros < axis.size:
                break
        if 0 < end < length:
            yield (
                f"{name}: its last {length - end} of {length} along dimension {dim} are zeros: if that is padding, add "
                f"'trim({dim}, {end})' to its layout, or only as many ranks as now can take it over"
            )


def _start(axis: Axis) -> int:
    return axis.spans[0].start if axis.spans else -1


def _unlike(name: str, seen: Sequence[Seen]) -> Iterator[str]:
    """Values to be averaged that have nothing in common."""
    (first, look), *others = seen
    for rank, other in others:
        ours, its = look.values, other.values
        if min(len(ours), len(its)) < UNLIKE_MIN or look.is_open or other.is_open or len(ours) != len(its):
            continue
        if abs(float(ours @ its)) < LIKENESS_MIN * float(np.linalg.norm(ours) * np.linalg.norm(its)):
            yield (
                f"{name}: by its layout its mean is taken, but what ranks {first}, {rank} hold has nothing in common: "
                "if these are parts of a whole, say 'MESH_DIM: shard(DIM)'"
            )
            return


def _listed(seen: Sequence[Seen]) -> str:
    return ", ".join(str(rank) for rank, _ in seen)
