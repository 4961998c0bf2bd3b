from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.live import describe
from ftrain.logical.placements import Scope
from ftrain.logical.rules import NamedMesh, Rules

MESH = NamedMesh(("tp",), (2,), (1,))


def stepped(parameters: list[nn.Parameter], **settings: object) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(parameters, **settings)  # type: ignore[arg-type]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_one_process_holds_the_whole_and_optimizer_state_is_named_by_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = stepped([model[0].bias, model[0].weight])
    live = describe({"opt": optimizer, "net": model, "noise": torch.zeros(5)}, rank=0, world_size=1)
    found = live.state.by_name
    assert list(found)[:3] == ["net.0.weight", "net.0.bias", "net.1.weight"]
    assert {"opt.net.0.bias.step", "opt.net.0.weight.exp_avg"} < set(found)
    assert found["opt.net.0.weight.exp_avg"].like == "net.0.weight"
    assert (found["net.0.weight"].shape, found["net.0.weight"].scope) == ((2, 3), Scope.SAME)
    assert {found[name].scope for name in ("net.1.running_mean", "noise")} == {Scope.OWN}
    assert live.tensors[0] is model[0].weight
    assert len(live.tensors) == len(live.state.tensors)


def test_wrappers_leave_no_trace_in_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    compiled = nn.Module()
    compiled.add_module("_orig_mod", model)
    assert set(describe({"net": compiled}, 0, 1).state.by_name) == {"net.0.weight"}


def test_tied_weights_are_one_tensor_with_two_names() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    model["head"].weight = model["embedding"].weight
    live = describe({"net": model, "opt": stepped(list(model.parameters()))}, 0, 1)
    assert [tensor.name for tensor in live.state.tensors if not tensor.like] == ["net.embedding.weight"]
    assert live.state.aliases["net.head.weight"] == "net.embedding.weight"
    assert live.state.aliases["opt.net.head.weight.exp_avg"] == "opt.net.embedding.weight.exp_avg"


def test_a_plain_parameter_of_a_larger_world_is_the_ranks_own() -> None:
    assert describe({"net": nn.Linear(2, 2)}, 1, 2).state.tensors[0].scope is Scope.OWN


def test_a_rule_says_how_a_plain_parameter_is_cut_and_its_optimizer_state_follows() -> None:
    model = nn.Linear(3, 2, bias=False)
    rules = Rules({"net.*": "tp: shard(0)", "*": "replicate"})
    found = describe({"net": model, "opt": stepped(list(model.parameters()))}, 1, 2, rules, MESH).state.by_name
    assert found["net.weight"].shape == found["opt.net.weight.exp_avg"].shape == (4, 3)
    assert found["opt.net.weight.exp_avg"].axes == found["net.weight"].axes
    assert (found["opt.net.weight.step"].shape, found["opt.net.weight.step"].copies) == ((), 2)


def test_without_a_mesh_rules_speak_of_the_world() -> None:
    rules = Rules({"*": "world: shard(1)"})
    assert describe({"net": nn.Linear(3, 2, bias=False)}, 3, 4, rules).state.tensors[0].shape == (2, 12)


def test_factored_state_of_a_sharded_parameter_needs_a_rule_of_its_own() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = stepped(list(model.parameters()))
    optimizer.state[model.weight]["rows"] = torch.zeros(2)
    cut = {"net.*": "tp: shard(0)"}
    with pytest.raises(LayoutInvalid, match=r"opt\.net\.weight\.rows has shape \(2,\), .* give it a layout rule"):
        describe({"net": model, "opt": optimizer}, 1, 2, Rules(cut), MESH)
    rules = Rules({"*.rows": "tp: shard(0)", **cut})
    assert describe({"net": model, "opt": optimizer}, 1, 2, rules, MESH).state.by_name["opt.net.weight.rows"].shape == (
        4,
    )


def test_tensors_within_the_state_of_a_sharded_parameter_cannot_be_described() -> None:
    """They would be taken from one rank for all, as values that are no tensors are."""
    model = nn.Linear(2, 2, bias=False)
    optimizer = stepped(list(model.parameters()))
    optimizer.state[model.weight]["momenta"] = {"counted": [torch.tensor(1)]}
    sharded, whole = (Rules({"*.weight": rule}) for rule in ("tp: shard(0)", "replicate"))
    describe({"net": model, "opt": optimizer}, 1, 2, sharded, MESH)
    optimizer.state[model.weight]["momenta"]["first"] = [torch.zeros(2, 2)]
    with pytest.raises(LayoutInvalid, match=r"opt\.net\.weight\.momenta has tensors within it, and its parameter is"):
        describe({"net": model, "opt": optimizer}, 1, 2, sharded, MESH)
    describe({"net": model, "opt": optimizer}, 1, 2, whole, MESH)


def test_parameters_that_no_module_has_are_named_by_their_number() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = stepped([model.weight, nn.Parameter(torch.zeros(2))])
    found = describe({"opt": optimizer, "net": model}, 0, 1).state
    assert set(found.by_name) >= {"net.weight", "opt.params.1", "opt.opt.params.1.exp_avg"}
    assert found.parameters == {"opt": ("net.weight", "opt.params.1")}


def test_of_those_the_bytes_must_tell_whether_ranks_have_the_same() -> None:
    optimizer = stepped([nn.Parameter(torch.zeros(2))])
    found = describe({"opt": optimizer}, 1, 2).state.by_name
    for name in ("opt.params.0", "opt.opt.params.0.exp_avg", "opt.opt.params.0.step"):
        assert (found[name].scope, found[name].copies) == (Scope.SAME, 0)


@pytest.mark.parametrize(("rule", "scope", "copies"), [("per_rank", Scope.OWN, 1), ("replicate", Scope.SAME, 2)])
def test_or_a_rule_says_so(rule: str, scope: Scope, copies: int) -> None:
    optimizer = stepped([nn.Parameter(torch.zeros(2))])
    found = describe({"opt": optimizer}, 1, 2, Rules({"opt.params.*": rule})).state.by_name
    assert {found[name].scope for name in ("opt.params.0", "opt.opt.params.0.exp_avg")} == {scope}
    assert found["opt.params.0"].copies == copies


def test_another_object_of_a_modules_memory_is_the_modules_parameter() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = stepped([nn.Parameter(model.weight.data)])
    found = describe({"opt": optimizer, "net": model}, 0, 1).state
    assert {name for name, tensor in found.by_name.items() if not tensor.like} == {"net.weight"}
    assert found.parameters == {"opt": ("net.weight",)}


def test_the_first_fsdp_is_refused_in_one_line() -> None:
    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # no process group is needed
    nn.Module.__init__(sharded)
    with pytest.raises(LayoutInvalid, match=r"model is sharded by FSDP1, .*: use FSDP2 \(fully_shard\)"):
        describe({"model": sharded}, 0, 1)
