from __future__ import annotations

import msgspec
import numpy as np
import pytest
from logical_worlds import Made, states_of

from ftrain.logical.axes import Axis, Span
from ftrain.logical.growth import with_optimizer_state
from ftrain.logical.placements import Scope, Shard, Spread
from ftrain.logical.reads import World
from ftrain.logical.state import Box, Extent, LogicalTensor, RankState, contiguous_strides, kept

HALF = Made((1,), (Shard(0),))
SIX_BY_TWO = {"model.w": np.zeros((6, 2), np.float32)}


def test_boxes_say_where_they_begin() -> None:
    """Given the second of two ranks that each have half of each part, then it has two boxes, one behind the other."""
    state = states_of({"w": np.zeros((8, 3), np.int16)}, {"w": Made((2,), (Shard(0, 2),))}, 2)[1]
    assert list(state.tensors[0].boxes()) == [(Box((2, 0), (2, 3)), 0), (Box((6, 0), (2, 3)), 12)]


def test_a_scalar_is_one_box_and_an_empty_part_none() -> None:
    [state] = states_of({"step": np.zeros((), np.int8)}, {"step": Made((1,), (Spread.REPLICATE,))}, 1)
    assert list(state.tensors[0].boxes()) == [(Box((), ()), 0)]
    empty = LogicalTensor("w", "int8", 1, (3,), (Axis(0, ()),), (1,))
    assert (list(empty.boxes()), empty.elements, empty.local_bytes) == ([], 0, 0)


@pytest.mark.parametrize(
    ("shape", "strides"), [((), ()), ((5,), (1,)), ((2, 3, 4), (12, 4, 1)), ((2, 0, 4), (4, 4, 1))]
)
def test_contiguous_strides_are_torchs(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    assert contiguous_strides(shape) == strides


@pytest.mark.parametrize(("live", "dense"), [((1, 4), (1, 4)), ((8, 1), (3, 1)), ((3, 1), (3, 1))])
def test_a_snapshot_keeps_memory_order_but_no_gaps(live: tuple[int, ...], dense: tuple[int, ...]) -> None:
    axes = (Axis(4, (Span(0, 0, 4),)), Axis(3, (Span(0, 0, 3),)))
    state = RankState(2, (LogicalTensor("w", "int8", 1, (4, 3), axes, live),), {"v": "w"})
    [tensor] = kept(state, {"w": (Extent(0, 12, 100),)}).tensors
    assert (tensor.strides, tensor.extents) == (dense, (Extent(0, 12, 100),))


def test_a_new_optimizer_gets_the_state_of_its_parameters() -> None:
    """Given a world whose optimizer has stepped, then a rank of another expects what goes with its own parameters."""
    [whole] = states_of(SIX_BY_TWO, {"model.w": Made((1,), (Shard(0),))}, 1)
    average = msgspec.structs.replace(whole.tensors[0], name="opt.model.w.exp_avg", dtype="float64", like="model.w")
    step = LogicalTensor("opt.model.w.step", "float32", 4, (), (), (), 1, Scope.SAME, "model.w")
    other = msgspec.structs.replace(average, name="opt.model.u.exp_avg", like="model.u")
    world = World((RankState(0, (*whole.tensors, average, step, other)),), {0: 0})
    third = states_of(SIX_BY_TWO, {"model.w": Made((3,), (Shard(0),))}, 3)[1]
    grown = with_optimizer_state(third, world)
    assert [t.name for t in grown.tensors] == ["model.w", "opt.model.w.exp_avg", "opt.model.w.step"]
    assert grown.by_name["opt.model.w.exp_avg"].axes == third.tensors[0].axes
    assert grown.by_name["opt.model.w.exp_avg"].dtype == "float64"
    assert grown.by_name["opt.model.w.step"].shape == ()
    assert with_optimizer_state(grown, world) == grown


def test_new_state_is_as_much_of_all_ranks_as_its_parameter_is_here() -> None:
    [whole] = states_of(SIX_BY_TWO, {"model.w": Made((1,), (Shard(0),))}, 1)
    own = msgspec.structs.replace(whole.tensors[0], scope=Scope.OWN)
    average = msgspec.structs.replace(own, name="opt.model.w.exp_avg", like="model.w")
    world = World((RankState(0, (own, average)),), {0: 0})
    assert with_optimizer_state(whole, world).by_name["opt.model.w.exp_avg"].scope is Scope.SAME


def test_a_tied_parameters_state_is_found_by_each_of_its_names() -> None:
    """Given two names for one tensor there, and two tensors here, then both get its optimizer state."""
    [one] = states_of({"m.a": np.zeros(2, np.int8)}, {"m.a": Made((1,), (Shard(0),))}, 1)
    moment = msgspec.structs.replace(one.tensors[0], name="opt.m.a.exp_avg", like="m.a")
    tied = World((RankState(0, (*one.tensors, moment), {"m.b": "m.a", "opt.m.b.exp_avg": "opt.m.a.exp_avg"}),), {0: 0})
    [two] = states_of({name: np.zeros(2, np.int8) for name in ("m.a", "m.b")}, dict.fromkeys(("m.a", "m.b"), HALF), 1)
    assert {"opt.m.a.exp_avg", "opt.m.b.exp_avg"} < set(with_optimizer_state(two, tied).by_name)
    [other] = states_of({"m.b": np.zeros(2, np.int8)}, {"m.b": HALF}, 1)
    assert [t.name for t in with_optimizer_state(other, tied).tensors] == ["m.b", "opt.m.b.exp_avg"]


def test_two_states_differ_as_their_digests() -> None:
    one, same, other = (states_of(SIX_BY_TWO, {"model.w": Made((n,), (Shard(0),))}, n)[0] for n in (2, 2, 3))
    assert one.digest == same.digest != other.digest
