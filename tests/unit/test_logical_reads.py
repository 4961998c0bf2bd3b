from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from logical_worlds import Array, Made, read, snapshot_of, states_of

from ftrain.logical import reads
from ftrain.logical.blocks import common_blocks
from ftrain.logical.coverage import check
from ftrain.logical.errors import StateUnreadable
from ftrain.logical.placements import Scope, Shard, Spread
from ftrain.logical.reads import Plan, Planner, World
from ftrain.logical.state import Extent, LogicalTensor, RankState

MIB = 1 << 20


def fsdp(arrays: dict[str, Array], ranks: int) -> dict[str, Made]:
    return dict.fromkeys(arrays, Made((ranks,), (Shard(0),)))


def ddp(arrays: dict[str, Array], ranks: int, *, is_shared: bool = False) -> dict[str, Made]:
    return dict.fromkeys(arrays, Made((ranks,), (Spread.REPLICATE,), is_shared=is_shared))


def test_layers_that_are_alike_are_worked_out_once() -> None:
    """Given 60 tensors of 3 kinds, when 3 ranks read what 4 hold, then geometry is done by kind."""
    arrays: dict[str, Array] = {f"t{index}": np.zeros((37 + index % 3, 4), np.int8) for index in range(60)}
    source, _ = snapshot_of(arrays, fsdp(arrays, 4), range(4))
    planner = Planner(source)
    with patch.object(reads, "common_blocks", side_effect=common_blocks) as worked_out:
        plans = [planner.plan(state, 0) for state in states_of(arrays, fsdp(arrays, 3), 3)]
        again = [planner.plan(state, 0) for state in states_of(arrays, fsdp(arrays, 3), 3)]
    assert worked_out.call_count == 3 * 4 * 3
    assert all(one is other for one, other in zip(plans, again, strict=True))
    assert [len(plan.reads) for plan in plans] == [2, 2, 2]  # neighbours in the source are read in one go
    assert sum(len(each.copies) for plan in plans for each in plan.reads) <= 2 * 3 * 60


def test_reads_are_bounded_and_hold_nothing_else() -> None:
    arrays: dict[str, Array] = {f"t{index}": np.zeros((6, 1 << 20), np.int8) for index in range(2)}
    source, _ = snapshot_of(arrays, fsdp(arrays, 2), range(2))
    plan = Planner(source).plan(states_of(arrays, ddp(arrays, 1), 1)[0], node=0)
    assert [each.rank for each in plan.reads] == [0, 0, 1, 1]
    assert max(each.stop - each.start for each in plan.reads) <= reads.READ_BYTES_MAX == 4 * MIB
    assert sum(each.stop - each.start for each in plan.reads) == 12 * MIB


def test_rows_of_a_column_are_one_copy_and_few_reads() -> None:
    arrays: dict[str, Array] = {"w": np.zeros((1024, 4096), np.float32)}
    source, _ = snapshot_of(arrays, fsdp(arrays, 1), [1])
    halves = {"w": Made((2,), (Shard(1),))}
    plan = Planner(source).plan(states_of(arrays, halves, 2)[1], node=0)
    assert len(plan.reads) == 4  # of 16 MiB, a half of each row is left out but read
    assert sum(len(each.copies) for each in plan.reads) <= 8


def test_rows_far_apart_are_read_without_what_lies_between() -> None:
    arrays: dict[str, Array] = {"w": np.zeros((16, 1 << 18), np.int8)}
    source, _ = snapshot_of(arrays, fsdp(arrays, 1), [1])
    plan = Planner(source).plan(states_of(arrays, {"w": Made((2,), (Shard(1),))}, 2)[0], node=0)
    assert len(plan.reads) == 16
    assert sum(each.stop - each.start for each in plan.reads) == 16 << 17


def test_memory_may_be_in_another_order_than_the_sources() -> None:
    array: Array = np.arange(12, dtype=np.int8).reshape(3, 4)
    arrays = {"rows": array, "columns": array}
    source, kept = snapshot_of(arrays, fsdp(arrays, 2), [0, 1])
    orders = {"rows": Made((1,), (Shard(0),)), "columns": Made((1,), (Shard(0),), order=(1, 0))}
    [[rows], [columns]] = read(Planner(source), kept, states_of(arrays, orders, 1)[0])
    assert rows == array.tobytes()
    assert columns == array.T.tobytes()


def asked(plan: Plan, nodes: Sequence[int]) -> dict[int, int]:
    found = dict.fromkeys(nodes, 0)
    for each in plan.reads:
        found[nodes[each.rank]] += each.stop - each.start
    return found


@pytest.fixture
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("READ_BYTES_MAX", 400), ("GAP_BYTES_MAX", 10), ("TURN_BYTES", 1600)):
        monkeypatch.setattr(reads, name, size)


def replicas(size: int, nodes: Sequence[int], lost: Sequence[int] = ()) -> tuple[Planner, RankState]:
    arrays: dict[str, Array] = {f"t{index}": np.zeros(size, np.int8) for index in range(12)}
    source, _ = snapshot_of(arrays, ddp(arrays, len(nodes)), nodes, lost)
    return Planner(source), states_of(arrays, ddp(arrays, 1), 1)[0]


@pytest.mark.usefixtures("_small_reads")
def test_of_replicas_the_local_one_is_read() -> None:
    planner, target = replicas(800, [0, 1, 2])
    assert asked(planner.plan(target, node=1), [0, 1, 2]) == {0: 0, 1: 9600, 2: 0}


@pytest.mark.usefixtures("_small_reads")
def test_without_a_local_one_nodes_are_asked_evenly() -> None:
    planner, target = replicas(800, [0, 1, 2])
    assert asked(planner.plan(target, node=7), [0, 1, 2]) == {0: 3200, 1: 3200, 2: 3200}


@pytest.mark.usefixtures("_small_reads")
def test_small_tensors_are_not_scattered_over_replicas() -> None:
    planner, target = replicas(20, [0, 1, 2])
    assert len(planner.plan(target, node=7).reads) == 1


@pytest.mark.usefixtures("_small_reads")
def test_ranks_begin_with_different_replicas() -> None:
    planner, target = replicas(20, [0, 1, 2])
    first = [planner.plan(target, node=node).reads[0].rank for node in (3, 4, 5)]
    assert sorted(first) == [0, 1, 2]


@pytest.mark.usefixtures("_small_reads")
def test_lost_replicas_are_not_read_while_another_lives() -> None:
    planner, target = replicas(800, [0, 1, 2], lost=[0, 1])
    assert not any(each.lost for each in planner.plan(target, node=7).reads)


@pytest.mark.usefixtures("_small_reads")
def test_of_lost_replicas_each_gives_its_share() -> None:
    planner, target = replicas(800, [0, 1], lost=[0, 1])
    plan = planner.plan(target, node=7)
    assert all(each.lost for each in plan.reads)
    assert asked(plan, [0, 1]) == {0: 4800, 1: 4800}


def test_values_to_be_averaged_are_all_read() -> None:
    how = Made((2, 2), (Spread.AVERAGE, Shard(0)))
    halves = [np.array([value, value + 1], np.float32) for value in (0, 2, 10, 12)]
    states = []
    for rank, half in enumerate(halves):
        tensor = how.describe("w", np.zeros(4, np.float32), rank)
        states.append(RankState(rank, (msgspec.structs.replace(tensor, extents=(Extent(0, half.nbytes, 0),)),)))
    check(states, are_kept=True)
    planner = Planner(World(tuple(states), dict.fromkeys(range(4), 0)))
    [target] = states_of({"w": np.zeros(4, np.float32)}, {"w": Made((1,), (Shard(0),))}, 1)
    [values] = read(planner, [half.view(np.uint8) for half in halves], target)
    assert np.mean([np.frombuffer(value, np.float32) for value in values], axis=0).tolist() == [5, 6, 7, 8]


def own(rank: int, value: float) -> tuple[RankState, Array]:
    tensor = Made((1,), (Spread.REPLICATE,)).describe("mean", np.zeros(1, np.float32), 0)
    tensor = msgspec.structs.replace(tensor, scope=Scope.OWN, extents=(Extent(0, 4, 0),))
    return RankState(rank, (tensor,)), np.array([value], np.float32).view(np.uint8)


@pytest.mark.parametrize(("rank", "value"), [(0, 10.0), (1, 11.0), (2, 10.0), (5, 11.0)])
def test_what_is_each_ranks_own_stays_with_it_and_new_ranks_take_turns(rank: int, value: float) -> None:
    (one, a), (other, b) = own(0, 10.0), own(1, 11.0)
    planner = Planner(World((one, other), {0: 0, 1: 1}))
    [[found]] = read(planner, [a, b], own(rank, 0.0)[0])
    assert np.frombuffer(found, np.float32)[0] == value


def test_tied_names_find_each_other() -> None:
    arrays: dict[str, Array] = {"embedding": np.arange(4, dtype=np.int8)}
    source, kept = snapshot_of(arrays, fsdp(arrays, 2), [0, 1])
    tied = tuple(RankState(state.rank, state.tensors, {"head": "embedding"}) for state in source.states)
    [target] = states_of({"head": arrays["embedding"]}, {"head": Made((1,), (Shard(0),))}, 1)
    there = Planner(World(tied, source.nodes))
    here = RankState(0, target.tensors, {"embedding": "head"})
    assert read(there, kept, target) == read(Planner(source), kept, here) == [[bytes(range(4))]]


def target_like(source: LogicalTensor, **changes: object) -> RankState:
    return RankState(0, (msgspec.structs.replace(source, **changes),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "u"}, "u: no rank"),
        ({"dtype": "int16"}, r"w is int16 \[4\] here, and int8 \[4\]"),
        ({"shape": (5,)}, r"w is int8 \[5\] here"),
    ],
)
def test_what_the_world_does_not_hold_is_refused(changes: dict[str, object], message: str) -> None:
    arrays: dict[str, Array] = {"w": np.arange(4, dtype=np.int8)}
    source, _ = snapshot_of(arrays, fsdp(arrays, 2), [0, 1])
    with pytest.raises(StateUnreadable, match=message):
        Planner(source).plan(target_like(source.states[0].tensors[0], **changes), node=0)


def test_bytes_that_nobody_keeps_are_not_invented() -> None:
    arrays: dict[str, Array] = {"w": np.arange(4, dtype=np.int8)}
    source, _ = snapshot_of(arrays, ddp(arrays, 2, is_shared=True), [0, 1])
    with pytest.raises(StateUnreadable, match="w: nobody keeps byte 2"):
        Planner(World(source.states[:1], source.nodes)).plan(states_of(arrays, ddp(arrays, 1), 1)[0], node=0)
