"""From objects to bytes and back, for one rank and for two whose exchange is played here."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from ftrain import restore
from ftrain.capture import Capturer
from ftrain.errors import NotTrackable, StateMismatch
from ftrain.gradients import live_gradients, load_gradients, watch_optimizer
from ftrain.restore import read_state
from ftrain.state import TensorKey, check_trackable, collect, load_state, state_of, tensor_key, unique_parameters


class Memory:
    """A region without a file."""

    def __init__(self, size: int) -> None:
        self.slot = 0
        self.data = memoryview(bytearray(size + 64))  # never empty, as a real one


def captured(tree: dict[str, Any], rank: int = 0, world: int = 1, shared: Any = set) -> tuple[memoryview, bytes]:
    capturer = Capturer(rank, world, shared)
    plan, collected = capturer.collect(tree)
    memory = Memory(plan.region_bytes)
    capturer.copy(plan, collected, memory)
    return memory.data, capturer.manifest(5, plan, collected)


def round_trip(tree: dict[str, Any]) -> dict[str, Any]:
    return read_state(*captured(tree), 0, 1)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.randn(5).to(torch.bfloat16),
        torch.randn(4, dtype=torch.complex64),
        torch.randn(4, dtype=torch.complex64).conj(),
        torch.randn(3, 4).t(),
        torch.randn(10)[::3],
        torch.randn(1).expand(3),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        nn.Parameter(torch.randn(2), requires_grad=False),
    ],
)
def test_tensors_of_all_kinds_come_back(tensor: torch.Tensor) -> None:
    back = round_trip({"t": tensor})["t"]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(back, tensor)
    assert back.data_ptr() != tensor.data_ptr() or tensor.numel() == 0


def test_tied_tensors_are_kept_once() -> None:
    a = nn.Linear(4, 4)
    b = nn.Linear(4, 4)
    b.weight = a.weight
    collected = collect({"m": nn.ModuleList([a, b]).state_dict()})
    assert len(collected.tensors) == 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("hidden", torch.zeros(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden += 1
        return self.norm(self.stem(x))


def trained(steps: int) -> dict[str, Any]:
    torch.manual_seed(steps)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()
        scheduler.step()
    return {"net": net, "optimizer": optimizer, "scheduler": scheduler}


def test_a_trained_module_with_optimizer_and_scheduler_goes_over_into_fresh_ones() -> None:
    old, new = trained(3), trained(0)
    state = round_trip({name: state_of(tracked) for name, tracked in old.items()})
    for name, tracked in new.items():
        load_state(name, tracked, state[name])
    for objects in (old, new):
        torch.manual_seed(9)
        objects["net"](torch.randn(5, 6)).square().sum().backward()
        objects["optimizer"].step()
        objects["scheduler"].step()
    new["optimizer"].zero_grad()
    for mine, theirs in zip(old["net"].parameters(), new["net"].parameters(), strict=True):
        mine.grad = None
        assert mine.shape == theirs.shape
    assert torch.equal(old["net"].norm.running_var, new["net"].norm.running_var)
    assert torch.equal(old["net"].hidden, new["net"].hidden)
    assert old["scheduler"].state_dict() == new["scheduler"].state_dict()


def test_float32_state_of_bf16_weights_is_not_rounded() -> None:
    weight = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
    old, new = (torch.optim.SGD([weight], momentum=0.9) for _ in range(2))
    old.state[weight]["momentum_buffer"] = torch.randn(4)
    load_state("optimizer", new, round_trip(state_of(old)))
    assert torch.equal(new.state[weight]["momentum_buffer"], old.state[weight]["momentum_buffer"])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(3).to_sparse(), "dense"),
        (torch.zeros(3, device="meta"), "meta"),
        (nn.LazyLinear(3).weight, "lazy"),
    ],
)
def test_tensors_without_bytes_of_their_own_are_refused(tensor: torch.Tensor, reason: str) -> None:
    with pytest.raises(NotTrackable, match=reason) as caught:
        collect({"model": {"w": tensor}})
    assert caught.value.path == "model.w"


def test_objects_without_state_are_refused() -> None:
    with pytest.raises(NotTrackable, match=r"cannot track loader \(list\): it has no state_dict"):
        check_trackable("loader", [])


def test_another_objects_state_is_refused() -> None:
    with pytest.raises(StateMismatch, match="net"):
        load_state("net", nn.Linear(2, 2), round_trip(state_of(nn.Linear(3, 2))))


def test_the_plan_is_kept_while_nothing_moves() -> None:
    capturer = Capturer(0, 1, set)
    tensor = torch.zeros(4)
    first, _ = capturer.collect({"t": tensor})
    tensor += 1
    assert capturer.collect({"t": tensor})[0] is first
    assert capturer.collect({"t": tensor.clone()})[0] is not first


def test_ranks_share_what_is_replicated_and_keep_what_is_theirs() -> None:
    """Given three ranks with equal weights and own buffers, when each keeps its part, then each gets all back."""
    weights = [torch.randn(50), torch.randn(7, 11), torch.tensor(3.0)]
    shared: set[TensorKey] = {tensor_key(weight) for weight in weights}
    regions = [captured({"w": weights, "own": torch.full((5,), rank)}, rank, 3, lambda: shared) for rank in range(3)]
    total = sum(weight.numel() * 4 for weight in weights)
    assert sum(len(data) - 64 for data, _ in regions) < total + 3 * (5 * 8 + 3 * 64)
    layouts = [restore.msgspec.msgpack.decode(m, type=restore.Manifest).layout for _, m in regions]
    layout = restore.msgspec.msgpack.decode(layouts[0], type=restore.Layout)
    space = torch.cat([torch.frombuffer(d, dtype=torch.uint8)[: layout.share(r)[1] - layout.share(r)[0]]
                       for r, (d, _) in enumerate(regions)])  # fmt: skip

    def broadcast(piece: torch.Tensor, src: int) -> None:
        low = next(lows)
        piece.copy_(space[low : low + len(piece)])

    for rank, (data, manifest) in enumerate(regions):
        lows = iter([low for r in range(3) for low in range(*layout.share(r), 100)])
        with (
            mock.patch.object(restore, "PIECE_BYTES", 100),
            mock.patch.object(restore.dist, "broadcast", broadcast),
            mock.patch.object(restore.dist, "get_backend", return_value="gloo"),
        ):
            state = read_state(data, manifest, rank, 3)
        assert all(torch.equal(a, b) for a, b in zip(state["w"], weights, strict=True))
        assert torch.equal(state["own"], torch.full((5,), rank))


def test_a_snapshot_of_another_world_is_refused() -> None:
    with pytest.raises(StateMismatch, match="rank 0 of 1"):
        read_state(*captured({"t": torch.zeros(1)}), 0, 2)


def test_gradients_are_state_until_an_optimizer_has_used_them() -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch_optimizer(optimizer)
    parameters = unique_parameters({"net": net, "optimizer": optimizer})
    assert len(parameters) == 2
    assert live_gradients(parameters) == {}
    net(torch.ones(1, 3)).sum().backward()
    live = live_gradients(parameters)
    assert live.keys() == {0, 1}
    optimizer.step()
    assert live_gradients(parameters) == {}
    net(torch.ones(1, 3)).sum().backward()  # accumulates into the same tensors
    assert live_gradients(parameters).keys() == {0, 1}
    optimizer.step()
    optimizer.zero_grad()
    assert live_gradients(parameters) == {}
    kept = copy.deepcopy(live)
    load_gradients(parameters, {0: kept[0]})
    assert torch.equal(parameters[0].grad, kept[0])
    assert parameters[1].grad is None
