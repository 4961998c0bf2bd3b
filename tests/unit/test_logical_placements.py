from __future__ import annotations

from itertools import product

import pytest
from torch.distributed.tensor import Shard as DShard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from ftrain.logical.axes import Span, axis, in_common, length_of, shard, whole
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.placements import Cut, Scope, Shard, Spread, locate, right_to_left


def indices(shape: tuple[int, ...], cuts: list[Cut]) -> list[list[int]]:
    axes = locate(shape, cuts).axes
    return [[index for span in a.spans for index in range(span.start, span.start + span.length)] for a in axes]


def chunk(values: list[int], count: int, place: int) -> list[int]:
    step = max(1, -(-len(values) // count))
    return values[place * step : (place + 1) * step]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 7, 8, 12])
def test_a_shard_is_dtensors(length: int) -> None:
    for (outer, inner), parts in product([(1, 1), (2, 3), (4, 1), (3, 4)], [1, 2, 3]):
        for i, j in product(range(outer), range(inner)):
            found = locate((length, 4), [Cut(Shard(0, parts), outer, i), Cut(Shard(0), inner, j)])
            first = DShard(0) if parts == 1 else _StridedShard(0, split_factor=parts)
            shape, offset = _compute_local_shape_and_global_offset(
                (length, 4), (outer, inner), [i, j], [first, DShard(0)]
            )
            assert tuple(a.size for a in found.axes) == tuple(shape)
            assert not found.axes[0].spans or found.axes[0].spans[0].start == offset[0]


@pytest.mark.parametrize("length", range(25))
def test_fsdp2_cuts_what_tensor_parallelism_has_left(length: int) -> None:
    """Uneven or not: the order of the cuts is FSDP2's, whatever DTensor makes of its placements."""
    for data, tensor in product([1, 2, 3, 4], [2, 3]):
        for i, j in product(range(data), range(tensor)):
            cuts = [Cut(Shard(0, tensor), data, i), Cut(Shard(0), tensor, j)]
            true = chunk(chunk(list(range(length)), tensor, j), data, i)
            assert indices((length,), right_to_left(cuts)) == [true]
            if length % (data * tensor) == 0:
                assert indices((length,), cuts) == [true]


def test_dtensors_reading_of_fsdp2_differs_where_it_is_uneven() -> None:
    cuts = [Cut(Shard(0, 2), 3, 2), Cut(Shard(0), 2, 1)]
    assert indices((7,), cuts) == [[]]
    assert indices((7,), right_to_left(cuts)) == [[6]]


def test_each_part_is_sharded_by_itself() -> None:
    q, k, v = list(range(8)), [8, 9], [10, 11]
    for place in (0, 1):
        held = indices((12,), [Cut(Shard(0, (8, 2, 2)), 2, place)])
        assert held == [chunk(q, 2, place) + chunk(k, 2, place) + chunk(v, 2, place)]


def test_cuts_that_touch_again_are_one_span() -> None:
    assert shard(whole(12), 4, 1, 0) == ((0, 12),)


def test_parts_must_add_up() -> None:
    with pytest.raises(LayoutInvalid, match=r"parts of 8 \+ 2 = 10 do not make 12"):
        locate((12,), [Cut(Shard(0, (8, 2)), 2, 0)])


def test_a_dimension_must_exist() -> None:
    with pytest.raises(LayoutInvalid, match="no dimension 2"):
        locate((3, 4), [Cut(Shard(2), 2, 0)])
    with pytest.raises(LayoutInvalid, match="cannot be trimmed to 5 in dimension 1"):
        locate((3, 4), [], {1: 5})


def test_padding_is_held_but_not_covered() -> None:
    found = locate((10, 2), [Cut(Shard(0), 2, 1)], {0: 7})
    assert found.shape == (7, 2)
    assert (found.axes[0].size, found.axes[0].spans) == (5, (Span(5, 0, 2),))
    assert axis(((7, 9), (10, 12)), limit=7).spans == ()


def test_ranks_that_hold_the_same_are_counted() -> None:
    cuts = [Cut(Spread.REPLICATE, 2, 0), Cut(Shard(0), 3, 1), Cut(Spread.UNIQUE, 4, 2)]
    assert locate((6,), cuts)[2:] == (2, Scope.SAME)
    assert locate((6,), [*cuts, Cut(Spread.AVERAGE, 5, 0)])[2:] == (10, Scope.MEAN)
    assert locate((6,), [Cut(Spread.AVERAGE, 1, 0)])[2:] == (1, Scope.SAME)


def test_what_two_have_in_common() -> None:
    one, other = axis(((0, 4), (8, 12))), axis(((2, 9), (11, 13)))
    assert list(in_common(one, other)) == [(2, 0, 2), (4, 6, 1), (7, 7, 1)]
    assert length_of(((2, 9), (11, 13))) == other.size == other.covered
