from __future__ import annotations

import msgspec
import numpy as np
import pytest
from logical_worlds import Array, Made, snapshot_of, states_of

from ftrain.logical.axes import Axis, Span
from ftrain.logical.coverage import Finding, check, findings, is_sound
from ftrain.logical.errors import StateUncovered
from ftrain.logical.placements import Scope, Shard, Spread
from ftrain.logical.state import Box, Extent, LogicalTensor, RankState

W: dict[str, Array] = {"w": np.zeros((8, 6), np.int8)}


def world(made: Made, ranks: int) -> list[RankState]:
    return states_of(W, {"w": made}, ranks)


def changed(state: RankState, **changes: object) -> RankState:
    return RankState(state.rank, tuple(msgspec.structs.replace(tensor, **changes) for tensor in state.tensors))


def found(states: list[RankState]) -> list[Finding]:
    return findings(states, are_kept=False)


@pytest.mark.parametrize(
    "made",
    [
        Made((4,), (Spread.REPLICATE,)),
        Made((4,), (Shard(0),)),
        Made((5,), (Shard(1, 2),)),
        Made((2, 2), (Shard(0, 2), Shard(0))),
        Made((2, 2), (Shard(1), Shard(0))),
        Made((2, 2), (Spread.REPLICATE, Shard(0))),
        Made((3,), (Shard(0),), padded={0: 4}),
    ],
)
def test_a_whole_world_has_no_findings(made: Made) -> None:
    ranks = int(np.prod(made.mesh))
    assert found(world(made, ranks)) == []
    source, _ = snapshot_of(W, {"w": made}, range(ranks))
    check(source.states, are_kept=True)


def test_what_nobody_holds_is_named_with_its_box() -> None:
    states = world(Made((4,), (Shard(0),)), 4)
    assert found(states[:1] + states[3:]) == [Finding("w", "held by nobody", (), Box((2, 0), (4, 6)))]


def test_a_missing_column_is_a_box_too() -> None:
    states = world(Made((2, 2), (Shard(0), Shard(1))), 4)
    [finding] = found(states[:3])
    assert str(finding) == "w at [4, 3] of size [4, 3]: held by nobody"


def test_a_replica_that_was_not_declared_is_an_overlap() -> None:
    """Two stages' tensors of one name, or a tensor cut by hand for which there is no rule."""
    [state] = world(Made((1,), (Spread.REPLICATE,)), 1)
    assert found([state, RankState(1, state.tensors)]) == [
        Finding("w", "held 2 times, its layout says 1", (0, 1), Box((0, 0), (8, 6)))
    ]


def test_a_declared_replica_that_is_missing_is_found() -> None:
    states = world(Made((3,), (Spread.REPLICATE,)), 3)
    assert [str(finding) for finding in found(states[:2])] == [
        "w at [0, 0] of size [8, 6]: held 2 times, its layout says 3 (ranks 0, 1)"
    ]


def test_parts_that_are_not_the_same_must_not_overlap() -> None:
    whole, half = world(Made((1,), (Spread.REPLICATE,)), 1)[0], world(Made((2,), (Shard(0),)), 2)[1]
    assert found([whole, half]) == [Finding("w", "held in different parts", (0, 1), Box((4, 0), (4, 6)))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"dtype": "int16"}, "int16"), ({"shape": (8, 7)}, r"\[8, 7\]"), ({"scope": Scope.MEAN}, "mean")],
)
def test_all_must_say_the_same(changes: dict[str, object], said: str) -> None:
    one, other = world(Made((2,), (Shard(0),)), 2)
    with pytest.raises(StateUncovered, match=rf"w: .*{said}.* here, int8 \[8, 6\].* there \(ranks 1, 0\)"):
        check([one, changed(other, **changes)], are_kept=False)


def test_replicas_must_lie_in_memory_alike() -> None:
    one, other = world(Made((2,), (Spread.REPLICATE,)), 2)
    [finding] = found([one, changed(other, strides=(1, 8))])
    assert "different orders" in finding.problem


def test_a_tensor_of_each_rank_may_differ() -> None:
    one, other = world(Made((2,), (Shard(0),)), 2)
    assert found([changed(one, scope=Scope.OWN), changed(other, scope=Scope.OWN, shape=(9, 6))]) == []


def test_bytes_must_be_kept_by_one_of_the_replicas() -> None:
    source, _ = snapshot_of(W, {"w": Made((3,), (Spread.REPLICATE,), is_shared=True)}, range(3))
    states = list(source.states)
    assert findings(states, are_kept=True) == []
    states[1] = changed(states[1], extents=())
    assert findings(states, are_kept=True) == [Finding("w", "nobody keeps byte 16 of 48", (0, 1, 2))]


def test_only_the_first_findings_are_shown() -> None:
    tensors = [LogicalTensor(f"t{i}", "int8", 1, (2,), (Axis(0, ()),), (1,)) for i in range(8)]
    with pytest.raises(StateUncovered, match=r"hold what they say: t0 at \[0\] of size \[2\]: .*; t4 .*; 3 more$"):
        check([RankState(0, tuple(tensors))], are_kept=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"axes": (Axis(4, (Span(0, 0, 4),)),)},
        {"axes": (Axis(8, (Span(4, 0, 8),)), Axis(6, (Span(0, 0, 6),)))},
        {"axes": (Axis(4, (Span(0, 0, 8),)), Axis(6, (Span(0, 0, 6),)))},
        {"axes": (Axis(8, (Span(4, 0, 2), Span(0, 2, 2))), Axis(6, (Span(0, 0, 6),)))},
        {"axes": (Axis(8, (Span(0, 0, 0),)), Axis(6, (Span(0, 0, 6),)))},
        {"strides": (-6, 1)},
        {"item_bytes": 0},
        {"copies": -1},
        {"extents": (Extent(4, 4, 0),)},
        {"extents": (Extent(0, 4, -1),)},
        {"extents": (Extent(0, 4, 0), Extent(2, 6, 4))},
    ],
)
def test_descriptions_that_contradict_themselves_are_refused(changes: dict[str, object]) -> None:
    [state] = world(Made((1,), (Spread.REPLICATE,)), 1)
    assert is_sound(state.tensors[0])
    assert [f.problem for f in found([changed(state, **changes)])] == ["its description contradicts itself"]


def test_a_description_travels() -> None:
    source, _ = snapshot_of(W, {"w": Made((2, 2), (Shard(0, 2), Shard(0)))}, range(4))
    state = RankState(1, source.states[1].tensors, {"v": "w"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=RankState) == state
