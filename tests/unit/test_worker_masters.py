"""Parameters that an optimizer alone has: captured with it, once, and put back where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftrain.capture import Capturer
from ftrain.encoding import unpack
from ftrain.errors import NotTrackable, StateMismatch
from ftrain.logical.live import describe
from ftrain.plan import Plan
from ftrain.sharded import local_of
from ftrain.shards import Part
from ftrain.state import check_owners, load_state, parameters_of


class Line:
    """Nobody listens."""

    def captured(self, *_: object) -> None: ...

    def sealed(self, *_: object) -> None: ...

    def skip(self, *_: object) -> None: ...


def capturer_of(objects: dict[str, Any]) -> Capturer:
    capturer = Capturer(0, 1, set, 0, Line())
    capturer.track(objects)
    return capturer


def captured(objects: dict[str, Any]) -> tuple[dict[str, Any], Plan]:
    """What the objects' part of a snapshot reads like, and the plan behind it."""
    content = capturer_of(objects).collect(lambda _: {})
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(content.tree))
    return unpack(tree, [tensor.detach().clone() for tensor in content.plan.tensors])["objects"], content.plan


def masters_of(model: nn.Module) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().float()) for parameter in model.parameters()]


def model_in_half() -> nn.Linear:
    return nn.Linear(3, 2, dtype=torch.bfloat16)


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for parameter in parameters_of(optimizer):
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def load(objects: dict[str, Any], saved: dict[str, Any]) -> None:
    check_owners(objects, saved)
    for name, tracked in objects.items():
        load_state(name, tracked, saved[name])


def test_they_come_back_into_the_very_parameters_with_their_state() -> None:
    old, new = ({"model": (model := model_in_half()), "opt": torch.optim.AdamW(masters_of(model))} for _ in range(2))
    stepped(old["opt"])
    saved, _ = captured(old)
    mine = parameters_of(new["opt"])
    load(new, saved)
    assert all(a is b for a, b in zip(parameters_of(new["opt"]), mine, strict=True))
    for here, there in zip(mine, parameters_of(old["opt"]), strict=True):
        assert torch.equal(here, there)
        assert here.dtype is torch.float32
        assert torch.equal(new["opt"].state[here]["exp_avg"], old["opt"].state[there]["exp_avg"])


def test_they_are_copied_behind_training_like_all_that_an_optimizer_has() -> None:
    model = model_in_half()
    _, plan = captured({"model": model, "opt": torch.optim.SGD(masters_of(model), lr=0.1)})
    assert plan.names == ["model.weight", "model.bias", "opt.params.0", "opt.params.1"]
    assert plan.lazy == [False, False, True, True]
    assert plan.data_bytes == plan.layout.region_bytes(0) == sum(64 for _ in plan.names)  # each is aligned to 64


class Half(nn.Linear):
    """Says nothing of its bias."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"weight": self.weight.detach()}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state, strict=False)


class Own(torch.optim.SGD):
    """Gives its masters itself."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [each.detach() for each in parameters_of(self)]}

    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})
        for mine, saved in zip(parameters_of(self), state["masters"], strict=True):
            mine.data.copy_(saved)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def in_a_list() -> tuple[dict[str, Any], dict[str, list[int]]]:
    masters = nn.ParameterList(masters_of(model_in_half()))
    return {"opt": sgd(masters), "masters": masters}, {"opt": []}


def optimizer_first() -> tuple[dict[str, Any], dict[str, list[int]]]:
    model, alone = nn.Linear(3, 2), nn.Parameter(torch.ones(5))
    return {"opt": sgd([alone, *model.parameters()]), "model": model}, {"opt": [0]}


def shared_by_two() -> tuple[dict[str, Any], dict[str, list[int]]]:
    one, two = (nn.Parameter(torch.ones(5)) for _ in range(2))
    return {"first": sgd([one]), "second": sgd([two, one])}, {"first": [0], "second": [0]}


def other_objects_of_the_same_memory() -> tuple[dict[str, Any], dict[str, list[int]]]:
    model = nn.Linear(3, 2)
    return {"model": model, "opt": sgd([nn.Parameter(each.data) for each in model.parameters()])}, {"opt": []}


def left_out_by_its_module() -> tuple[dict[str, Any], dict[str, list[int]]]:
    model = Half(3, 2)
    return {"model": model, "opt": sgd(model.parameters())}, {"opt": [1]}


def given_by_the_optimizer() -> tuple[dict[str, Any], dict[str, list[int]]]:
    return {"opt": Own(masters_of(model_in_half()), lr=0.1)}, {"opt": [0, 1]}


def kept_in_its_state() -> tuple[dict[str, Any], dict[str, list[int]]]:
    optimizer = sgd([nn.Parameter(torch.ones(5))])
    optimizer.state[parameters_of(optimizer)[0]]["alias"] = parameters_of(optimizer)[0].detach()
    return {"opt": optimizer}, {"opt": [0]}


class Holder:
    """Gives masters, and takes others."""

    def __init__(self, values: list[nn.Parameter]) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


def given_by_what_is_no_module() -> tuple[dict[str, Any], dict[str, list[int]]]:
    masters = masters_of(model_in_half())
    return {"holder": Holder(masters), "opt": sgd(masters)}, {"opt": [0, 1]}


@pytest.mark.parametrize(
    "make",
    [
        in_a_list, optimizer_first, shared_by_two, other_objects_of_the_same_memory, left_out_by_its_module,
        given_by_the_optimizer, kept_in_its_state, given_by_what_is_no_module,
    ],
)  # fmt: skip
def test_each_is_captured_once_whoever_else_has_it(
    make: Callable[[], tuple[dict[str, Any], dict[str, list[int]]]],
) -> None:
    objects, expected = make()
    saved, plan = captured(objects)
    assert {name: list(saved[name].get("params", {})) for name in expected} == expected
    memory = {tensor.data_ptr() for tensor in plan.tensors}
    assert len(memory) == len(plan.tensors)
    every = [each for tracked in objects.values() if isinstance(tracked, torch.optim.Optimizer)
             for each in parameters_of(tracked)]  # fmt: skip
    assert {each.data_ptr() for each in every} <= memory
    values = [each.detach().clone() for each in every]
    with torch.no_grad():
        for each in every:
            each.fill_(77)
    load(objects, saved)
    assert all(torch.equal(a, b) for a, b in zip(every, values, strict=True))


def test_one_that_is_added_later_goes_with_the_next_snapshot() -> None:
    optimizer = sgd(masters_of(model_in_half()))
    capturer = capturer_of({"opt": optimizer})
    assert capturer.collect(lambda _: {}).plan.names == ["opt.params.0", "opt.params.1"]
    optimizer.add_param_group({"params": [nn.Parameter(torch.full((4,), 3.0))]})
    assert capturer.collect(lambda _: {}).plan.names == ["opt.params.0", "opt.params.1", "opt.params.2"]


def test_the_plan_is_void_where_one_lies_elsewhere() -> None:
    optimizer = sgd([nn.Parameter(torch.ones(4))])
    capturer = capturer_of({"opt": optimizer})
    plan = capturer.collect(lambda _: {}).plan
    assert capturer.collect(lambda _: {}).plan is plan
    parameters_of(optimizer)[0].data = torch.zeros(4)
    assert capturer.collect(lambda _: {}).plan is not plan


def test_another_shape_is_refused_and_another_dtype_told_of() -> None:
    saved, _ = captured({"opt": sgd([nn.Parameter(torch.ones(2, 3))])})
    with pytest.raises(StateMismatch, match=r"opt\.params\.0 was captured in shape \(2, 3\), here it has shape \(6,\)"):
        load_state("opt", sgd([nn.Parameter(torch.zeros(6))]), saved["opt"])
    other = sgd([nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))])
    with pytest.warns(UserWarning, match=r"opt\.params\.0 was captured as torch\.float32 and is torch\.float64 here"):
        load_state("opt", other, saved["opt"])
    assert parameters_of(other)[0].eq(1).all()


def test_where_a_module_has_it_now_it_is_refused() -> None:
    """Given a run that has replaced a layer, of which its optimizer has the old one, and a script that has not."""
    models = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    old, new = ({"model": model, "opt": sgd(model.parameters())} for model in models)
    old["model"][0] = nn.Linear(2, 2)
    saved, _ = captured(old)
    assert list(saved["opt"]["params"]) == [0, 1]
    with pytest.raises(StateMismatch, match=r"opt\.params\.0 was the optimizer's alone .* is model\.0\.weight here"):
        load(new, saved)


def test_one_that_cannot_be_kept_is_refused_by_name() -> None:
    optimizer = sgd([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, device="meta"))])
    with pytest.raises(NotTrackable, match=r"objects\.opt\.params\[1\].* this one is meta"):
        captured({"opt": optimizer})


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Rank 5 of six, which speak to nobody."""
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=6)
    mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp"))
    sharded(mesh)  # the first one takes a second
    yield mesh
    dist.destroy_process_group()


def sharded(mesh: DeviceMesh) -> tuple[nn.Module, torch.optim.Optimizer]:
    """FSDP2 over tensor parallelism, and masters."""
    model = nn.Sequential(nn.Linear(3, 7, bias=False, dtype=torch.bfloat16))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return model, torch.optim.SGD(masters_of(model), lr=0.1)


def test_sharded_ones_come_back_into_the_local_part(mesh: DeviceMesh) -> None:
    old, new = (dict(zip(("model", "opt"), sharded(mesh), strict=True)) for _ in range(2))
    with torch.no_grad():
        local_of(*parameters_of(old["opt"])).fill_(0.5)  # a made-up group leaves there what memory held
    saved, plan = captured(old)
    (part,) = saved["opt"]["params"].values()
    assert (type(part), plan.layout.specs[1].name, plan.layout.specs[1].shape) == (Part, "opt.params.0", (1, 3))
    (there,), (here,) = parameters_of(old["opt"]), parameters_of(new["opt"])
    place = local_of(here).data_ptr()
    load_state("opt", new["opt"], saved["opt"])
    assert local_of(here).data_ptr() == place
    assert torch.equal(local_of(here), local_of(there))
    saved, _ = captured(old)
    with pytest.raises(StateMismatch, match=r"opt\.params\.0 was captured sharded, .* and is not sharded here"):
        load_state("opt", sgd([nn.Parameter(torch.zeros(1, 3))]), saved["opt"])


def test_of_fsdp_they_are_cut_as_fsdp_cuts(mesh: DeviceMesh) -> None:
    """DTensor reads the placements in another order: of 7 rows this rank, (2, 1), would have none."""
    model, optimizer = sharded(mesh)
    found = describe({"model": model, "opt": optimizer}, 5, 6).state.by_name
    assert found["opt.params.0"].axes == found["model.0.weight"].axes
    assert found["opt.params.0"].elements == 3
