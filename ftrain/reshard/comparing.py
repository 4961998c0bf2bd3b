"""Replicas that no layout speaks of, compared before one of them is taken for all.

A tensor on a mesh that is not all of the job (FSDP2's ``dp`` beside ``tp``) has its like on the ranks beside it, or
these have nothing of it: its own rank cannot tell. Nor can it of a plain parameter that only an optimizer has. Where
several ranks of the snapshot hold the same part, their bytes must be equal. The new ranks share the work; each reads
and drops.
"""

from __future__ import annotations

from collections import defaultdict

import xxhash

from ftrain.durable.source import READ_BYTES, Source
from ftrain.logical.errors import StateUncovered
from ftrain.logical.placements import Scope
from ftrain.logical.reads import World
from ftrain.logical.state import Held, LogicalTensor


def compare_replicas(world: World, source: Source, lanes: int, rank: int, world_size: int) -> None:
    """This rank's share. Raises StateUncovered, naming tensor and ranks, and what ``source`` raises."""
    groups: dict[object, list[Held]] = defaultdict(list)
    for state in world.states:
        for tensor in state.tensors:
            if tensor.copies == 0 and tensor.scope is Scope.SAME and tensor.local_bytes:
                groups[tensor.name, tensor.axes, tensor.strides].append((state.rank, tensor))
    several = [group for group in groups.values() if len(group) > 1]
    for group in several[rank::world_size]:
        sums = {_sum(source, lanes, holder, tensor) for holder, tensor in group}
        if len(sums) > 1:
            ranks = ", ".join(str(holder) for holder, _ in group)
            raise StateUncovered(
                f"{group[0][1].name}: ranks {ranks} hold the same part of it with different values: say by "
                "ctx.layout on which mesh dimension it is cut, or that it is each rank's own ('per_rank')"
            )


def _sum(source: Source, lanes: int, rank: int, tensor: LogicalTensor) -> int:
    hasher = xxhash.xxh3_64()
    for extent in tensor.extents:
        end = extent.offset + extent.stop - extent.start
        for start in range(extent.offset, end, READ_BYTES):
            hasher.update(source.read(*divmod(rank, lanes), start, min(end, start + READ_BYTES)))
    return hasher.intdigest()
