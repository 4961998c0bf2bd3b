"""The same reads for ``torch.distributed.checkpoint``: a snapshot of another world, as a checkpoint that DCP can load.

    dcp.load(state_dict, storage_reader=ctx.snapshot_reader())

Each tensor is one chunk, under its logical name and its other names; who has which bytes is worked out when they are
read. Optimizer state has DCP's names too: ``optimizer.state.layer.weight.exp_avg``. Values that are no tensors are
left to `Context.track`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ftrain.logical.axes import Axis, Span
from ftrain.logical.placements import Scope
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.reshard.origin import OldWorld
from ftrain.reshard.tensors import TensorReader


class SnapshotReader(StorageReader):
    """Of one rank; made by `Context.snapshot_reader`."""

    def __init__(self, old: OldWorld, rank: int) -> None:
        self._reader = TensorReader(old, rank)
        self._tensors = {name: tensor for state in old.world.states for name, tensor in _named(state)}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is one snapshot, whatever it is called."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """All tensors, each as one chunk."""
        return Metadata({name: _metadata(tensor) for name, tensor in self._tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """All is known."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are: each rank knows whom to ask."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read all items into the tensors that the planner gives. Raises what reading raises."""
        places: list[Tensor] = [planner.resolve_tensor(item).detach() for item in plan.items]
        targets = [
            _box(self._tensors[item.storage_index.fqn], item, place)
            for item, place in zip(plan.items, places, strict=True)
        ]
        self._reader.read(targets, places, {})
        for item, place in zip(plan.items, places, strict=True):
            planner.commit_tensor(item, place)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Never found by a name."""
        return False


def _named(state: RankState) -> Iterator[tuple[str, LogicalTensor]]:
    """A rank's tensors by all their names."""
    by_name = state.by_name
    names = [*((name, name) for name in by_name), *state.aliases.items()]
    for name, first in names:
        tensor = by_name.get(first)
        if tensor is None:
            continue
        yield name, tensor
        for optimizer in state.parameters if tensor.like else ():
            if name.startswith(f"{optimizer}."):  # then comes the module, which DCP's names leave out
                _, _, within = name.removeprefix(f"{optimizer}.").partition(".")
                yield f"{optimizer}.state.{within}", tensor


def _metadata(tensor: LogicalTensor) -> TensorStorageMetadata:
    size = torch.Size(tensor.shape)
    chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
    return TensorStorageMetadata(TensorProperties(getattr(torch, tensor.dtype)), size, [chunk])


def _box(tensor: LogicalTensor, item: ReadItem, place: Tensor) -> LogicalTensor:
    """The part of it that an item asks for, as it lies in that place."""
    axes = tuple(
        Axis(length, (Span(start, 0, length),) if length else ())
        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
    )
    # Each rank's own is given as such to who asks for all of it; a part is one of a tensor that ranks share.
    scope = tensor.scope if tuple(item.lengths) == tensor.shape else Scope.SAME
    return msgspec.structs.replace(tensor, axes=axes, strides=tuple(place.stride()), extents=(), scope=scope)
