"""What is no tensor, from several ranks: agreed on, each one's own, or by the name of a parameter."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from logical_worlds import Made

from ftrain.errors import StateMismatch
from ftrain.logical.placements import Shard, Spread
from ftrain.logical.state import RankState
from ftrain.reshard.values import (
    agreed,
    by_parameter,
    check_within,
    derived_rng,
    difference,
    empty_group_settings,
    group_settings,
    holds,
)
from ftrain.rng import rng_state, set_rng_state
from ftrain.shards import Mesh, Part, ShardSpec

NAN = float("nan")


@pytest.mark.parametrize(
    ("left", "right", "where"),
    [
        ({"a": [1, (2, NAN)]}, {"a": [1, (2, NAN)]}, None),
        ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}, "x.a[1][1]"),
        ({"a": 1}, {"b": 1}, "x"),
        ([1], [1, 2], "x"),
        (1, 1.0, "x"),
        (deque([1, 2]), deque([1, 3]), "x[1]"),
        (np.arange(3), np.arange(3), None),
        (np.arange(3), np.arange(3.0), "x"),
        ({"t": torch.zeros(2)}, {"t": torch.ones(2)}, None),
        ({"t": torch.zeros(2)}, {"t": torch.zeros(3)}, "x.t"),
    ],
)
def test_where_two_values_differ(left: Any, right: Any, where: str | None) -> None:
    assert difference(left, right, "x") == where


def test_ranks_must_agree_unless_their_values_are_their_own() -> None:
    same = {0: {"epoch": 1}, 1: {"epoch": 1}, 3: {"epoch": 1}}
    assert [agreed("loader", same, False, rank) for rank in range(4)] == [0, 1, 3, 0]
    other = same | {3: {"epoch": 2}}
    with pytest.raises(StateMismatch, match=r"loader\.epoch differs between rank 0 and rank 3 .*'per_rank'"):
        agreed("loader", other, False, 0)
    assert agreed("loader", other, True, 2) == 3


def test_parts_of_sharded_tensors_are_found() -> None:
    part = Part(torch.zeros(1), ShardSpec((2,), (1,), (("shard", 0),), Mesh("cpu", (2,), (0, 1), None)))
    assert holds({"a": [1, (part,)]}, Part)
    assert not holds({"a": [1, (torch.zeros(1),)]}, Part)


def optimizer_of(lr: float, *params: int, **state: Any) -> dict[str, Any]:
    groups = [{"lr": lr, "params": list(params), "param_names": ["?"] * len(params)}]
    return {"state": {index: dict(state) for index in params}, "param_groups": groups}


def test_settings_and_state_of_stages_come_by_the_parameters_name() -> None:
    """Given two stages with other parameters under the same numbers, then each keeps its own."""
    first = optimizer_of(0.1, 0, 1, exp_avg=torch.zeros(2), count=3)
    second = optimizer_of(0.2, 0, count=4)
    kept = by_parameter("sgd", [(0, first, ["a", "b"]), (1, first, ["a", "b"]), (2, second, ["c"])])
    assert {name: (one.rank, one.settings, one.values) for name, one in kept.items()} == {
        "a": (0, {"lr": 0.1}, {"count": 3}),
        "b": (0, {"lr": 0.1}, {"count": 3}),
        "c": (2, {"lr": 0.2}, {"count": 4}),
    }
    group = group_settings("sgd", 0, ["b", "a"], kept)
    assert group is not None
    assert group.settings == {"lr": 0.1}
    assert group_settings("sgd", 1, [], kept) is None
    with pytest.raises(StateMismatch, match=r"sgd\.param_groups\[1\]\.lr of a and of c differ"):
        group_settings("sgd", 1, ["a", "c"], kept)
    with pytest.raises(StateMismatch, match="sgd has the parameter d, which the snapshot's has not"):
        group_settings("sgd", 0, ["d"], kept)


def test_tensors_within_values_are_refused_where_their_parameter_is_cut() -> None:
    """Given momenta in a dictionary, then whole parameters keep theirs; a part's would be another part's here."""
    inner = optimizer_of(0.1, 0, momenta={"m": [torch.zeros(2, 3)], "count": torch.tensor(1)})
    kept = by_parameter("muon", [(0, inner, ["w"])])
    whole, part = (
        RankState(0, (Made((2,), (cut,)).describe("w", np.zeros((4, 3), np.float32), 0),))
        for cut in (Spread.REPLICATE, Shard(0))
    )
    check_within("muon", kept, [whole])
    with pytest.raises(StateMismatch, match="muon has tensors within 'momenta' of its state of w, of which ranks have"):
        check_within("muon", kept, [whole, part])
    counted = by_parameter("muon", [(0, optimizer_of(0.1, 0, counts=[torch.tensor(1)]), ["w"])])
    check_within("muon", counted, [whole, part])


def test_a_group_without_parameters_has_what_all_groups_of_its_number_have() -> None:
    """Given a stage that has nothing for its second group, then it has what the others' are stepped with."""
    states = {rank: {"param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": []}]} for rank in range(3)}
    found = empty_group_settings(1, states)
    assert found is not None
    assert (found.rank, found.settings) == (0, {"lr": 0.2})
    assert empty_group_settings(2, states) is None
    states[2]["param_groups"][1] = {"lr": 0.3, "params": [1]}
    assert empty_group_settings(1, states) is None
    states[2]["param_groups"].pop()
    assert empty_group_settings(1, states) is not None


def test_ranks_that_differ_in_an_optimizer_are_named() -> None:
    ranks = [(0, optimizer_of(0.1, 0), ["a"]), (1, optimizer_of(0.2, 0), ["a"])]
    with pytest.raises(StateMismatch, match=r"sgd\.lr of a differs between ranks 0 and 1"):
        by_parameter("sgd", ranks)
    with pytest.raises(StateMismatch, match="keeps its state in a way of its own"):
        by_parameter("sgd", [(0, {"mine": 1}, ["a"])])


def test_new_ranks_draw_numbers_of_their_own_and_always_the_same() -> None:
    before = rng_state()
    try:
        drawn = []
        for rank in (4, 5, 4):
            set_rng_state(derived_rng(before, rank))
            drawn.append((torch.rand(2).tolist(), np.random.rand()))
        assert drawn[0] == drawn[2] != drawn[1]
    finally:
        set_rng_state(before)
