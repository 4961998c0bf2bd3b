"""Re-sharding as a property: whatever two worlds are, the one reads from the other what slicing the arrays gives."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from logical_worlds import FILLED, Array, Made, memory, read, snapshot_of, states_of

from ftrain.logical import reads
from ftrain.logical.coverage import check
from ftrain.logical.placements import Shard, Spread
from ftrain.logical.reads import Plan, Planner, World
from ftrain.logical.state import RankState

Drawn = tuple[dict[str, Array], dict[str, Made], dict[str, Made], list[int], int, list[int], tuple[int, int]]


@st.composite
def made(draw: st.DrawFn, shape: tuple[int, ...], ranks: int) -> Made:
    """Any way to spread a tensor over so many ranks."""
    mesh = draw(st.sampled_from([(ranks,), *((a, ranks // a) for a in range(1, ranks + 1) if ranks % a == 0)]))
    padded = draw(st.dictionaries(st.sampled_from(range(len(shape))), st.integers(0, 5))) if shape else {}
    placements: list[Shard | Spread] = []
    for _ in mesh:
        dim = draw(st.integers(-1, len(shape) - 1))
        parts: int | tuple[int, ...] = draw(st.integers(1, 3))
        length = shape[dim] + padded.get(dim, 0) if dim >= 0 else 0
        if length and not any(isinstance(p, Shard) and p.dim == dim for p in placements) and draw(st.booleans()):
            edges = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=3))})
            parts = tuple(high - low for low, high in pairwise(edges))
        placements.append(Spread.REPLICATE if dim < 0 else Shard(dim, parts))
    return Made(mesh, tuple(placements), tuple(draw(st.permutations(range(len(shape))))), padded, draw(st.booleans()))


@st.composite
def worlds(draw: st.DrawFn) -> Drawn:
    """Arrays, two ways to spread them, the first one's nodes, the second one's size, lost nodes, limits of reads."""
    shapes = draw(st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=3))
    kinds = [draw(st.sampled_from([np.int8, np.int16, np.float32, np.float64])) for _ in shapes]
    arrays: dict[str, Array] = {
        f"t{index}": (np.arange(np.prod(shape, dtype=int)) % 50).astype(kind).reshape(shape)
        for index, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    }
    ranks, ranks_after = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    before = {name: draw(made(array.shape, ranks)) for name, array in arrays.items()}
    after = {name: draw(made(array.shape, ranks_after)) for name, array in arrays.items()}
    nodes = draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    lost = draw(st.lists(st.sampled_from(nodes), unique=True))
    return arrays, before, after, nodes, ranks_after, lost, draw(st.sampled_from([(8, 0), (24, 5), (1 << 20, 1 << 20)]))


@seed(5)
@settings(max_examples=150, deadline=None)
@given(worlds())
def test_any_world_reads_what_any_other_holds(drawn: Drawn) -> None:
    arrays, before, after, nodes, ranks, lost, (length_max, gap_max) = drawn
    source, kept = snapshot_of(arrays, before, nodes, lost)
    target = states_of(arrays, after, ranks)
    check(source.states, are_kept=True)
    check(target, are_kept=False)
    planner = Planner(source)
    with patch.multiple(reads, READ_BYTES_MAX=length_max, GAP_BYTES_MAX=gap_max):
        for state in target:
            for tensor, [found] in zip(state.tensors, read(planner, kept, state, node=state.rank % 4), strict=True):
                assert found == memory(after[tensor.name].part(arrays[tensor.name], state.rank, padding=FILLED))
            plan = planner.plan(state, node=state.rank % 4)
            assert all(each.stop - each.start <= length_max for each in plan.reads)
            assert_lost_ones_are_the_last_resort(source, state, plan)


def assert_lost_ones_are_the_last_resort(source: World, target: RankState, plan: Plan) -> None:
    for each in plan.reads:
        assert each.lost == (source.nodes[each.rank] in source.lost)
        for copy in each.copies if each.lost else ():
            name, low = target.tensors[copy.tensor].name, copy.block.source
            part = source.states[each.rank].by_name[name].axes
            alive = [s.by_name[name] for s in source.states if source.nodes[s.rank] not in source.lost]
            same = [extent for tensor in alive if tensor.axes == part for extent in tensor.extents]
            assert not any(extent.start <= low < extent.stop for extent in same)
