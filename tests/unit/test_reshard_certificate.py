"""The verdict over what all ranks say: each thing that can be wrong is found, and named."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from torch import nn

from ftrain.logical.axes import axis, shard, whole
from ftrain.logical.placements import Scope
from ftrain.logical.rules import Rules
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.plan import Plan
from ftrain.reshard.certificate import Account, Sampling, judge, sum_of
from ftrain.reshard.describer import Describer
from ftrain.sampler import ElasticSampler

RANKS = 2


def tensor(name: str, rank: int, *, cut: bool) -> LogicalTensor:
    axes = (axis(shard(whole(5), 1, RANKS, rank) if cut else whole(5)),)
    return LogicalTensor(name, "float32", 4, (5,), axes, (1,), 1 if cut else RANKS)


def sampling(rank: int, position: int = 3) -> Sampling:
    sampler = ElasticSampler(10, global_batch=6, rank=rank, world_size=RANKS)
    whole_sum = sum_of(sampler.whole_batch(position))
    return Sampling(position, 6, (rank, RANKS), tuple(sampler.batch(position)), whole_sum)


def accounts() -> list[Account]:
    found = []
    for rank in range(RANKS):
        tensors = (tensor("model.cut", rank, cut=True), tensor("model.same", rank, cut=False))
        state = RankState(rank, tensors, {"model.tied": "model.same"})
        objects = ("model", "optimizer", "sampler")
        steps = {"optimizer.model.same": 4.0}
        found.append(Account(state, objects, (0, 77), steps, {"sampler": sampling(rank)}, 20))
    return found


SNAPSHOT = [accounts()[0].state]


def verdict(rank: int = 1, names: tuple[str, ...] = ("model",), **changed: Any) -> list[str]:
    each = accounts()
    each[rank] = msgspec.structs.replace(each[rank], **changed)
    return judge(each, names, SNAPSHOT)


def test_a_sound_world_is_certified() -> None:
    assert verdict() == []
    own = msgspec.structs.replace(tensor("model.own", 1, cut=False), scope=Scope.OWN, copies=1)
    state = accounts()[1].state
    assert verdict(state=RankState(1, (*state.tensors, own), state.aliases), sums=(0, 77, 5)) == []


def test_what_nobody_holds() -> None:
    state = accounts()[1].state
    less = RankState(1, state.tensors[1:], state.aliases)
    assert verdict(state=less, sums=(77,)) == ["model.cut at [3] of size [2]: held by nobody"]
    assert verdict(names=("model", "ema")) == ["the snapshot holds ema, which no rank tracks"]
    each = [msgspec.structs.replace(one, state=RankState(one.state.rank, one.state.tensors[:1])) for one in accounts()]
    each = [msgspec.structs.replace(one, sums=one.sums[:1]) for one in each]
    assert judge(each, (), SNAPSHOT) == ["model.same: the snapshot holds it, and no rank has taken it"]


def test_rank_0_warns_once_of_a_state_that_no_other_world_can_take_over() -> None:
    linear = nn.Linear(2, 2)
    plan = Plan([], linear.parameters(), set(), 0, 2)
    ranks = [Describer(rank, 2) for rank in range(2)]
    for describer in ranks:
        describer.rules = Rules({"*.weight": "world: shard(0, parts=[5, 5])"})
    with pytest.warns(
        UserWarning, match="no other number of ranks can resume this state: describing it failed: LayoutInvalid"
    ) as told:
        said = [describer.record({"net": linear}, plan) for describer in (*ranks, *ranks)]
    assert len(told) == 1
    assert all(isinstance(msgspec.msgpack.decode(each), str) for each in said)


def test_a_tied_tensor_may_have_another_of_its_names() -> None:
    each = []
    for one in accounts():
        cut, same = one.state.tensors
        state = RankState(one.state.rank, (cut, msgspec.structs.replace(same, name="model.tied")))
        each.append(msgspec.structs.replace(one, state=state))
    assert judge(each, (), SNAPSHOT) == []


def test_replicas_counters_and_positions_that_differ() -> None:
    assert verdict(sums=(9, 78)) == ["model.same: replicas are not equal: ranks [0] and [1] differ"]
    assert verdict(steps={"optimizer.model.same": 5.0}) == ["optimizer.model.same: 4 steps on rank 0, 5 on rank 1"]
    assert verdict(samplers={"sampler": sampling(1, 4)}) == ["sampler: ranks are at positions 3, 4"]


def test_samples_that_are_left_out_or_come_twice() -> None:
    twice = msgspec.structs.replace(sampling(1), next=sampling(0).next)
    assert "are not the next global batch" in verdict(samplers={"sampler": twice})[0]
    same_place = msgspec.structs.replace(sampling(1), place=(0, RANKS))
    assert "would train on different samples" in verdict(samplers={"sampler": same_place})[0]
    other_world = msgspec.structs.replace(sampling(1), place=(1, 3))
    assert "the batches are dealt to [2, 3]" in verdict(samplers={"sampler": other_world})[0]
    assert verdict(samplers={"sampler": Sampling(3, 6, (1, RANKS))})  # a stream on one rank, none on the other


def test_a_sampler_that_is_not_dealt_out_is_the_same_everywhere() -> None:
    alone = ElasticSampler(10, global_batch=6, rank=0, world_size=1)
    one = msgspec.structs.replace(sampling(0), place=(0, 1), next=tuple(alone.batch(3)))
    each = [msgspec.structs.replace(said, samplers={"sampler": one}) for said in accounts()]
    assert judge(each, (), SNAPSHOT) == []
