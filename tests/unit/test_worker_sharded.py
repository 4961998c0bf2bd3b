"""DTensors and FSDP2 modules, on a mesh of one rank that speaks to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftrain import looks
from ftrain.capture import Capturer
from ftrain.encoding import unpack
from ftrain.errors import NotTrackable, StateMismatch
from ftrain.gradients import live_gradients, watch_optimizer
from ftrain.looks import Faces, Tensors
from ftrain.probe import missing_state_bytes
from ftrain.reading import read_refusal
from ftrain.sharded import Gathering, is_same_everywhere, joined, local_of, spec_of
from ftrain.shards import Part
from ftrain.sources import source_of
from ftrain.state import collect, load_state, state_of, unique_parameters

ROWS = (Shard(0),)


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    dtensor(mesh).detach()  # the first operation takes a second
    yield mesh
    dist.destroy_process_group()


def dtensor(mesh: DeviceMesh, rows: int = 2, placements: Any = ROWS) -> Any:
    return DTensor.from_local(torch.ones(rows, 3), mesh, placements, run_check=False)


def net(mesh: DeviceMesh) -> Any:
    return fully_shard(nn.Linear(3, 4), mesh=mesh)


class Holder:
    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def test_its_local_tensor_is_what_is_kept_and_it_comes_back_on_the_live_mesh(mesh: DeviceMesh) -> None:
    tensor = dtensor(mesh)
    collected = collect({"a": [tensor, tensor.detach()]})
    assert [local.shape for local in collected.tensors] == [(2, 3)]  # tied, and so kept once
    tree = joined(unpack(collected.tree, [torch.full((2, 3), 7.0)]), [Holder({"live": (tensor,)})])
    first, second = tree["a"]
    assert first is second
    assert first.device_mesh is tensor.device_mesh
    assert (spec_of(first), first.dtype) == (spec_of(tensor), torch.float32)
    assert local_of(first).eq(7).all()


def test_a_collective_that_is_under_way_is_waited_for(mesh: DeviceMesh) -> None:
    tensor = dtensor(mesh)
    tensor._local_tensor = AsyncCollectiveTensor(torch.full((2, 3), 5.0))
    (local,) = collect({"a": tensor}).tensors
    assert type(local) is torch.Tensor
    assert local.eq(5).all()


def test_a_mesh_that_nobody_has_is_one_clear_line(mesh: DeviceMesh) -> None:
    part = Part(torch.ones(2, 3), spec_of(dtensor(mesh)))
    with pytest.raises(
        StateMismatch, match=r"holds a tensor \[4, 3\] as \[shard\(0\)\] on a mesh dp=2 of ranks 0, 1; no"
    ):
        joined({"a": part}, [nn.Linear(2, 2)])


def test_another_placement_is_one_clear_line(mesh: DeviceMesh) -> None:
    model = net(mesh)
    state = {
        name: Part(None, spec_of(p)._replace(placements=(("replicate",),))) for name, p in model.named_parameters()
    }
    with pytest.raises(
        StateMismatch, match=r"model\.weight was captured sharded, \[4, 3\] as \[replicate\] .* here: the"
    ):
        load_state("model", model, {"state": state, "buffers": {}})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    saved = {"state": {0: {"momentum_buffer": state["weight"]}}, "param_groups": [{"params": [0, 1]}]}
    with pytest.raises(StateMismatch, match=r"optimizer\.state\.0\.momentum_buffer was captured"):
        load_state("optimizer", optimizer, {"state": saved})
    with pytest.raises(StateMismatch, match="and is not sharded here"):
        load_state("model", nn.Linear(3, 4), {"state": state, "buffers": {}})


@pytest.mark.parametrize("native", [True, False])
def test_both_a_dtensor_and_its_local_tensor_tell_of_changes(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    if not native:
        monkeypatch.setattr(looks, "_native", lambda: None)
    tensors = [dtensor(mesh), dtensor(mesh)]
    faces = Faces(enumerate(tensors))

    def counted() -> list[int]:
        versions = looks.Placed(map(local_of, tensors)).look()[1]
        faces.add_versions(versions)
        return list(versions)

    before = counted()
    tensors[0].mul_(2)
    local_of(tensors[1]).mul_(2)
    assert [now > then for now, then in zip(counted(), before, strict=True)] == [True, True]
    assert faces.are_same()
    tensors[1]._local_tensor = torch.zeros(2, 3)
    assert not faces.are_same()


def test_what_an_evaluation_leaves_gathered_is_sharded_again(mesh: DeviceMesh) -> None:
    model = net(mesh)
    sharded = list(model.parameters())
    model(torch.ones(1, 3)).sum().backward()  # the first one registers hooks
    source = source_of("model", model)
    with torch.no_grad():
        model(torch.ones(1, 3))
    assert list(map(id, model.parameters())) != list(map(id, sharded))
    assert source.is_same()
    assert list(map(id, model.parameters())) == list(map(id, sharded))
    with torch.no_grad():
        model(torch.ones(1, 3))
    assert list(map(id, unique_parameters({"model": model}))) == list(map(id, sharded))


def test_the_hooks_of_fsdp_do_not_make_a_state_that_is_asked_for_each_time(mesh: DeviceMesh) -> None:
    model = net(mesh)
    assert not source_of("model", model).asks()
    model.register_state_dict_pre_hook(lambda *_: None)
    assert source_of("model", model).asks()


def test_gradients_that_wait_for_their_reduction_cannot_be_captured(mesh: DeviceMesh) -> None:
    model = net(mesh)
    gathering = Gathering(model.modules())
    assert gathering.is_settled()
    model.set_requires_gradient_sync(False)
    model(torch.ones(1, 3)).sum().backward()
    assert not gathering.is_settled()
    model.set_requires_gradient_sync(True)
    model(torch.ones(1, 3)).sum().backward()
    assert gathering.is_settled()
    model.set_requires_gradient_sync(False)
    model(torch.ones(1, 3)).sum().backward()
    assert not gathering.is_settled()


def test_a_gradient_that_fsdp_accumulates_into_is_live_again(mesh: DeviceMesh) -> None:
    parameter = nn.Parameter(dtensor(mesh))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    watch_optimizer(optimizer)
    parameter.grad = dtensor(mesh)
    optimizer.step()
    assert live_gradients(Tensors([parameter])) == {}
    parameter.grad._local_tensor += 1
    assert list(live_gradients(Tensors([parameter]))) == [0]


def test_the_plan_owns_local_tensors_and_is_void_when_one_is_replaced(mesh: DeviceMesh) -> None:
    model = net(mesh)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    capturer = Capturer(0, 1, set, 0, None)
    try:
        capturer.track({"model": model, "optimizer": optimizer})
        plan = capturer.collect(lambda _: {}).plan
        assert len(plan.tensors) == 8
        assert not any(isinstance(tensor, DTensor) for tensor in plan.tensors)
        assert sum(plan.lazy) == 8
        assert capturer.collect(lambda _: {}).plan is plan
        model.weight._local_tensor = model.weight._local_tensor.clone()
        assert capturer.collect(lambda _: {}).plan is not plan
    finally:
        capturer.close()


def test_what_an_optimizer_will_keep_is_foreseen_by_the_local_size(mesh: DeviceMesh) -> None:
    model = net(mesh)
    missing = missing_state_bytes(torch.optim.AdamW(model.parameters()))
    assert sorted(missing.values()) == [2 * 2 * 4, 2 * 2 * 3 * 4]


def test_replicas_on_every_rank_are_known(mesh: DeviceMesh) -> None:
    everywhere = dtensor(mesh, placements=[Replicate()])
    assert is_same_everywhere(everywhere, 2)
    assert not is_same_everywhere(everywhere, 4)
    assert not is_same_everywhere(dtensor(mesh), 2)
    assert not is_same_everywhere(torch.ones(1), 2)


def test_state_comes_back_into_the_very_parameters(mesh: DeviceMesh) -> None:
    model = net(mesh)
    collected = collect(state_of(model))
    values = [torch.rand_like(tensor) for tensor in collected.tensors]
    before = [local_of(p).data_ptr() for p in model.parameters()]
    load_state("model", model, unpack(collected.tree, values))
    assert [local_of(p).data_ptr() for p in model.parameters()] == before
    for parameter, value in zip(model.parameters(), values, strict=True):
        assert torch.equal(local_of(parameter), value)


def test_a_placement_of_another_kind_is_refused_by_name(mesh: DeviceMesh) -> None:
    class Tilted(Shard):
        pass

    tensor = dtensor(mesh)
    object.__setattr__(tensor._spec, "placements", (Tilted(0),))
    with pytest.raises(NotTrackable, match=r"ema.*placement.*is none that is kept"):
        collect({"ema": tensor})


class Remembering(nn.Linear):
    """A module that says more of itself than its tensors."""

    def __init__(self, said: Any) -> None:
        super().__init__(3, 4)
        self.said = said

    def get_extra_state(self) -> Any:
        return self.said


def test_shards_in_the_extra_state_of_a_module_are_said_to_be_of_this_world_only(mesh: DeviceMesh) -> None:
    capturer = Capturer(0, 1, set, 0, None)
    capturer.track({"model": nn.Sequential(Remembering([1, torch.ones(2)]), Remembering({"mean": dtensor(mesh)}))})
    with pytest.warns(UserWarning, match=r"model\.1\._extra_state holds sharded tensors that are no module's"):
        plan = capturer.collect(lambda _: {}).plan
    assert "model.1._extra_state holds sharded tensors" in (read_refusal(plan) or "")


def test_shards_of_an_object_of_the_users_are_said_to_be_of_this_world_only(mesh: DeviceMesh) -> None:
    capturer = Capturer(0, 1, set, 0, None)
    capturer.track({"model": nn.Linear(3, 4), "ema": Holder({"weights": [dtensor(mesh)]})})
    with pytest.warns(UserWarning, match=r"ema holds sharded tensors that are no module's .*: track a module"):
        plan = capturer.collect(lambda _: {}).plan
    assert "ema holds sharded tensors" in (read_refusal(plan) or "")
