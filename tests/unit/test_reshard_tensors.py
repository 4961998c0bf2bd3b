"""Logical tensors into memory of any kind: contiguous or not, averaged or not, near or from afar."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from logical_worlds import Made, snapshot_of

from ftrain.errors import StateMismatch
from ftrain.logical.axes import Axis, Span, axis, whole
from ftrain.logical.placements import Scope, Shard, Spread
from ftrain.logical.reads import Planner, World
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.reshard.tensors import TensorReader
from ftrain_snapshot.read_plan import Wanted

ARRAY = np.arange(48, dtype=np.float32).reshape(8, 6)


class Memory:
    """What each rank keeps, one to a node."""

    def __init__(self, kept: list[Any]) -> None:
        self._kept = kept
        self.near: list[int] = []
        self.far: list[int] = []

    def read(self, position: int, lane: int, start: int, stop: int) -> Any:
        self.near.append(position)
        return self._kept[position][start:stop]

    def read_into(self, wanted: Iterable[Wanted]) -> None:
        for want in wanted:
            self.far.append(want.position)
            want.into[:] = self._kept[want.position][want.start : want.start + len(want.into)].data


def old_world(made: Made, position: int, ranks: int = 2) -> Any:
    world, kept = snapshot_of({"w": ARRAY}, {"w": made}, range(ranks))
    return as_old(world, kept, position)


def as_old(world: World, kept: list[Any], position: int) -> Any:
    origin = SimpleNamespace(position=position)
    return SimpleNamespace(world=world, planner=Planner(world), source=Memory(kept), lanes=1, origin=origin)


def target(place: torch.Tensor, length: int = 8) -> LogicalTensor:
    axes = axis(whole(place.shape[0]), length), axis(whole(6))
    return LogicalTensor("w", "float32", 4, (length, 6), axes, tuple(place.stride()))


@pytest.mark.parametrize("position", [-1, 0, 1])
@pytest.mark.parametrize(
    "place",
    [
        torch.zeros(8, 6),
        torch.zeros(6, 8).t(),  # another order in memory
        torch.zeros(8, 12)[:, ::2],  # with gaps
    ],
)
def test_all_memory_is_filled(place: torch.Tensor, position: int) -> None:
    old = old_world(Made((2,), (Shard(0),)), position)
    place.zero_()
    TensorReader(old, 0).read([target(place)], [place], {})
    assert place.tolist() == ARRAY.tolist()
    assert set(old.source.near) == ({position} if position >= 0 else set())
    assert set(old.source.far) == {0, 1} - {position}


def test_padding_is_zero() -> None:
    place = torch.full((9, 6), 7.0)
    TensorReader(old_world(Made((2,), (Shard(1),)), 0), 0).read([target(place)], [place], {})
    assert place[:8].tolist() == ARRAY.tolist()
    assert place[8].tolist() == [0.0] * 6


def values_of_each(scope: Scope, more: float) -> Any:
    """An old world of two ranks, of which the second one's values are so much larger."""
    world, kept = snapshot_of({"w": ARRAY}, {"w": Made((2,), (Spread.AVERAGE,))}, range(2))
    values = [np.frombuffer(bytearray(each.tobytes()), np.uint8) for each in kept]
    extent = world.states[1].tensors[0].extents[0]
    values[1][extent.offset : extent.offset + ARRAY.nbytes] = np.frombuffer((ARRAY + more).tobytes(), np.uint8)
    states = [
        RankState(state.rank, tuple(msgspec.structs.replace(tensor, scope=scope) for tensor in state.tensors))
        for state in world.states
    ]
    return as_old(World(tuple(states), world.nodes), values, 0)


@pytest.mark.parametrize("name", ["w", "tied"])
def test_values_that_are_each_ranks_own_are_averaged(name: str) -> None:
    place = torch.zeros(8, 6)
    tensor = msgspec.structs.replace(target(place), name=name)
    TensorReader(values_of_each(Scope.MEAN, 3), 0).read([tensor], [place], {"w": name})
    assert place.tolist() == (ARRAY + 1.5).tolist()


@pytest.mark.parametrize("rows", [slice(0, 8), slice(4, 8), slice(6, 9)])
def test_what_was_each_ranks_own_becomes_one_tensor_where_they_agree(rows: slice) -> None:
    length = rows.stop - rows.start
    place = torch.full((length, 6), 7.0)
    covered = min(rows.stop, 8) - rows.start
    axes = Axis(length, (Span(rows.start, 0, covered),)), axis(whole(6))
    tensor = msgspec.structs.replace(target(place), shape=(8, 6), axes=axes)
    TensorReader(values_of_each(Scope.OWN, 0), 1).read([tensor], [place], {})
    assert place[:covered].tolist() == ARRAY[rows].tolist()
    assert not place[covered:].any()
    with pytest.raises(StateMismatch, match="w was each rank's own in the world that is read, with values that differ"):
        TensorReader(values_of_each(Scope.OWN, 3), 1).read([tensor], [place], {})


def test_what_was_each_ranks_own_and_still_is_need_not_agree() -> None:
    place = torch.zeros(8, 6)
    tensor = msgspec.structs.replace(target(place), scope=Scope.OWN)
    TensorReader(values_of_each(Scope.OWN, 3), 1).read([tensor], [place], {})
    assert place.tolist() == (ARRAY + 3).tolist()
