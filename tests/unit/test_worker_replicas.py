"""Which parameters ranks hold in common, and their digests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftrain import replicas
from ftrain.link import LinkMessage, Replicas
from ftrain.replicas import ReplicaCheck, plain, replica_sets

WORLD, RANK = 4, 1


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORLD)
    yield
    dist.destroy_process_group()


class Sent(list[Replicas]):
    def __call__(self, message: LinkMessage) -> bool:
        assert isinstance(message, Replicas)
        self.append(message)
        return True


def digests_of(model: nn.Module, ddps: list[DDP], optimizers: list[torch.optim.Optimizer], step: int = 0) -> Replicas:
    sent = Sent()
    ReplicaCheck(1, sent).check(step, list(model.parameters()), ddps, optimizers)
    return sent[0]


def sharded(*placements: Placement, shape: tuple[int, int] = (2, 2)) -> nn.Parameter:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replica", "shard"))
    return nn.Parameter(DTensor.from_local(torch.ones(4, 3), mesh, placements, run_check=False))


@pytest.mark.usefixtures("world")
def test_what_ddp_owns_is_shared_by_its_group_and_nothing_else_is() -> None:
    model, other = DDP(nn.Linear(3, 3)), nn.Linear(2, 2)
    parameters = [*model.parameters(), *other.parameters()]
    assert replica_sets(parameters, [model]) == {(0, 1, 2, 3): list(model.parameters())}


@pytest.mark.usefixtures("world")
def test_a_dtensor_is_shared_by_the_ranks_with_the_same_shard() -> None:
    hybrid, split, partial = (
        sharded(Replicate(), Shard(0)),
        sharded(Shard(0), Shard(1)),
        sharded(Partial(), Replicate()),
    )
    both = sharded(Replicate(), Replicate())
    assert replica_sets([hybrid, split, partial, both], []) == {(1, 3): [hybrid], (0, 1, 2, 3): [both]}


@pytest.mark.usefixtures("world")
def test_of_plain_parameters_it_is_left_open_who_shares_them() -> None:
    model, other = DDP(nn.Linear(3, 3)), nn.Linear(2, 2)
    parameters = [*model.parameters(), sharded(Shard(0), Shard(1)), *other.parameters()]
    assert plain(parameters, [model]) == list(other.parameters())
    (digest,) = digests_of(other, [], []).digests
    assert digest.size == 0
    assert digest.replicas.startswith("parameters: plain tensors, ")


@pytest.mark.usefixtures("world")
def test_one_bit_changes_the_digest_and_a_buffer_does_not() -> None:
    model = DDP(nn.BatchNorm1d(5))
    first = digests_of(model, [model], [])
    model.module.running_mean.add_(1.0)
    assert digests_of(model, [model], []) == first
    model.module.weight.data.view(torch.int32)[3] ^= 1
    (changed,) = digests_of(model, [model], []).digests
    assert changed.replicas == first.digests[0].replicas
    assert changed.digest != first.digests[0].digest


@pytest.mark.usefixtures("world")
def test_the_optimizer_has_a_digest_of_its_own() -> None:
    model = DDP(nn.Linear(3, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    first = digests_of(model, [model], [optimizer]).digests
    optimizer.state[model.module.bias]["exp_avg"][0] += 1.0
    second = digests_of(model, [model], [optimizer]).digests
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False]


@pytest.mark.usefixtures("world")
def test_a_large_state_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BYTES_MAX", 40)
    model = DDP(nn.Linear(3, 3))
    one, other, again = (digests_of(model, [model], [], step).digests for step in (0, 1, 2))
    assert one != other
    assert one == again


@pytest.mark.usefixtures("world")
def test_it_is_due_after_the_first_step_and_every_so_many() -> None:
    check = ReplicaCheck(10, Sent())
    due = []
    for step in range(13, 45):
        if check.due(step):
            due.append(step)
            check.check(step, [], [], [])
    assert due == [13, 19, 29, 39]
    assert not ReplicaCheck(0, Sent()).due(9)


@pytest.mark.usefixtures("world")
def test_a_check_that_fails_is_the_last_and_does_not_end_the_training() -> None:
    def broken(message: LinkMessage) -> bool:
        raise RuntimeError("no line")

    check = ReplicaCheck(10, broken)
    with pytest.warns(UserWarning, match="not compared any more.*no line"):
        check.check(9, [], [], [])
    assert not check.due(19)
