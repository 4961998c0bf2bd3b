"""From objects to bytes and back, for one rank and for two whose exchange is played here."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from ftrain.capture import Capturer
from ftrain.errors import NotTrackable, StateMismatch
from ftrain.gradients import live_gradients, load_gradients, watch_optimizer
from ftrain.looks import Tensors
from ftrain.restore import read_state
from ftrain.state import check_trackable, collect, load_state, state_of, tensor_key, unique_parameters
from ftrain_snapshot.arena import SLOTS, extend, home_bytes, home_path, table_bytes, table_path
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import unit_bytes
from ftrain_snapshot.words import SnapshotId


class Line:
    """Nobody listens."""

    def captured(self, lane: int, snapshot: SnapshotId) -> None: ...

    def sealed(self, lane: int, snapshot: SnapshotId) -> None: ...

    def skip(self, snapshot: SnapshotId) -> None: ...


SNAPSHOT = SnapshotId(5, 1, 0)
RoundTrip = Callable[[dict[str, Any]], dict[str, Any]]


def captured(
    folder: Path, tree: dict[str, Any], rank: int = 0, world: int = 1, tracked: Mapping[str, Any] | None = None
) -> Lane:
    capturer = Capturer(rank, world, set, rank, Line())
    capturer.track(tracked or {})
    content = capturer.collect(lambda _: tree)
    manifest = capturer.manifest(SNAPSHOT.version, content)
    size = home_bytes(unit_bytes(content.data_bytes, len(manifest)))
    for slot in range(SLOTS):
        extend(home_path(folder, slot, rank), size)
        extend(table_path(folder, slot, rank), table_bytes(size))
    lane = Lane(folder, rank)
    capturer.begin(SNAPSHOT, content, manifest, lane)
    capturer.close()
    return lane


def read(lane: Lane, rank: int = 0, world: int = 1) -> dict[str, Any]:
    return read_state(lane.regions[SNAPSHOT.slot], lane.homes, SNAPSHOT, rank, world, {}).tree


@pytest.fixture
def round_trip(tmp_path: Path) -> RoundTrip:
    return lambda tree: read(captured(tmp_path, tree))


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
def test_tensors_of_all_kinds_come_back(tensor: torch.Tensor, round_trip: RoundTrip) -> None:
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


def test_a_trained_module_with_optimizer_and_scheduler_goes_over_into_fresh_ones(round_trip: RoundTrip) -> None:
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


def test_a_module_of_another_dtype_is_told_of_once(round_trip: RoundTrip) -> None:
    old, new = nn.Linear(3, 2), nn.Linear(3, 2).to(torch.bfloat16)
    state = round_trip(state_of(old))
    said = r"net\.weight was captured as torch\.float32 and is torch\.bfloat16 here"
    with pytest.warns(UserWarning, match=said) as told:
        load_state("net", new, state)
    assert len(told) == 1
    assert torch.equal(new.weight, old.weight.to(torch.bfloat16))


def test_float32_state_of_bf16_weights_is_not_rounded(round_trip: RoundTrip) -> None:
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


def test_an_optimizer_whose_state_dict_is_of_an_earlier_step_is_refused() -> None:
    sharding = ZeroRedundancyOptimizer.__new__(ZeroRedundancyOptimizer)  # no process group is needed
    with pytest.raises(NotTrackable, match=r"opt \(ZeroRedundancyOptimizer\): .* shard by FSDP2"):
        check_trackable("opt", sharding)


def test_another_objects_state_is_refused(round_trip: RoundTrip) -> None:
    with pytest.raises(StateMismatch, match="net"):
        load_state("net", nn.Linear(2, 2), round_trip(state_of(nn.Linear(3, 2))))


def test_the_plan_is_kept_while_nothing_moves() -> None:
    capturer, net = Capturer(0, 1, set, 0, Line()), nn.Linear(2, 2)
    capturer.track({"net": net})
    first = capturer.collect(lambda _: {}).plan
    with torch.no_grad():
        net.weight += 1
    assert capturer.collect(lambda _: {}).plan is first
    net.weight = nn.Parameter(net.weight.detach().clone())
    assert capturer.collect(lambda _: {}).plan is not first
    capturer.close()


def test_ranks_whose_optimizers_have_another_order_divide_other_states() -> None:
    """Of equal shapes as well: else each would keep a part of other parameters' state."""
    digests = []
    for order in ("01", "01", "10"):
        net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        optimizer = torch.optim.SGD([net[int(at)].weight for at in order], lr=0.1, momentum=0.9)
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        tensors = [*net.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())]
        shared = {tensor_key(tensor) for tensor in tensors}
        capturer = Capturer(0, 2, lambda shared=shared: shared, 0, Line())
        capturer.track({"net": net, "optimizer": optimizer})
        digests.append(capturer.collect(lambda _: {}).plan.digest)
        capturer.close()
    same, one, other = digests
    assert one == same != other


def test_a_snapshot_of_another_world_is_refused(tmp_path: Path) -> None:
    lane = captured(tmp_path, {"t": torch.zeros(1)})
    with pytest.raises(StateMismatch, match="rank 0 of 1"):
        read(lane, 0, 2)


def test_gradients_are_state_until_an_optimizer_has_used_them() -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    watch_optimizer(optimizer)
    parameters = unique_parameters({"net": net, "optimizer": optimizer})
    assert len(parameters) == 2
    assert live_gradients(Tensors(parameters)) == {}
    net(torch.ones(1, 3)).sum().backward()
    live = live_gradients(Tensors(parameters))
    assert live.keys() == {0, 1}
    optimizer.step()
    assert live_gradients(Tensors(parameters)) == {}
    net(torch.ones(1, 3)).sum().backward()  # accumulates into the same tensors
    assert live_gradients(Tensors(parameters)).keys() == {0, 1}
    optimizer.step()
    optimizer.zero_grad()
    assert live_gradients(Tensors(parameters)) == {}
    kept = copy.deepcopy(live)
    load_gradients(parameters, {0: kept[0]})
    assert torch.equal(parameters[0].grad, kept[0])
    assert parameters[1].grad is None


def test_gradients_that_are_sparse_come_back(round_trip: RoundTrip) -> None:
    """Given an embedding that accumulates sparse gradients, when they are captured, then nothing tells."""
    table = nn.Embedding(9, 3, sparse=True)
    for rows in ([1, 4, 1], [4, 8]):
        table(torch.tensor(rows)).square().sum().backward()
    gradient = table.weight.grad
    assert not gradient.is_coalesced()
    state = round_trip({"gradients": live_gradients(Tensors([table.weight]))})
    table.weight.grad = None
    load_gradients([table.weight], state["gradients"])
    assert table.weight.grad.is_coalesced() == gradient.is_coalesced()
    assert torch.equal(table.weight.grad._indices(), gradient._indices())
    assert torch.equal(table.weight.grad._values(), gradient._values())


def test_a_parameter_that_only_an_optimizer_knows_does_not_move_the_others() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
    one.weight = nn.Parameter(torch.ones(2, 2))
    found = unique_parameters({"one": one, "optimizer": optimizer, "two": two})
    assert [id(parameter) for parameter in found[:4]] == [id(p) for m in (one, two) for p in m.parameters()]
    assert len(found) == 5


class Repeated(nn.Module):
    """Its tensors repeat their elements."""

    def __init__(self, value: float) -> None:
        super().__init__()
        column = torch.arange(3.0)[:, None] + value
        self.weight = nn.Parameter(column.expand(3, 5), requires_grad=False)
        self.register_buffer("mask", torch.full((1,), value).expand(2, 7))
        self.register_buffer("hidden", torch.full((4,), value).expand(6, 4), persistent=False)


def test_expanded_tensors_are_loaded_and_stay_expanded(round_trip: RoundTrip) -> None:
    old, new = Repeated(2.0), Repeated(0.0)
    load_state("model", new, round_trip({"model": state_of(old)})["model"])
    for name in ("weight", "mask", "hidden"):
        assert torch.equal(getattr(new, name), getattr(old, name)), name
        assert getattr(new, name).stride() == getattr(old, name).stride(), name


def test_a_tensor_and_its_conjugate_are_two(round_trip: RoundTrip) -> None:
    """Given views of one piece of memory that are not read in the same way, when restored, then each is what it was."""
    z = torch.randn(4, dtype=torch.complex64)
    state = {"z": z, "conj": z.conj(), "imag": z.imag, "negative": z.conj().imag}
    back = round_trip(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


class Exchanged(nn.Module):
    """Its hooks save each of two parameters under the other one's name, transposed, and load them so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
        self.register_state_dict_post_hook(lambda module, state, prefix, metadata: exchange(state, prefix))
        self.register_load_state_dict_pre_hook(lambda module, state, prefix, *more: exchange(state, prefix))


def exchange(state: dict[str, torch.Tensor], prefix: str) -> None:
    state[prefix + "a"], state[prefix + "b"] = state[prefix + "b"].t(), state[prefix + "a"].t()


def test_a_module_whose_hooks_load_in_a_way_of_their_own_is_not_filled_in_place(tmp_path: Path) -> None:
    old, new = Exchanged(), Exchanged()
    lane = captured(tmp_path, {}, tracked={"model": old})
    state = read_state(lane.regions[SNAPSHOT.slot], lane.homes, SNAPSHOT, 0, 1, {"model": new}).tree["objects"]
    load_state("model", new, state["model"])
    assert torch.equal(new.a, old.a)
    assert torch.equal(new.b, old.b)


def test_what_an_optimizer_keeps_inside_containers_comes_back_as_it_was(round_trip: RoundTrip) -> None:
    """Given what torch's ``load_state_dict`` casts or makes anew, when restored, then types and bounds are kept."""
    old, new = (torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1) for _ in range(2))
    pair = (torch.ones(2, dtype=torch.float64), {"mask": torch.tensor([True, False])})
    kept = {"pair": pair, "recent": deque([1.0, 2.0], maxlen=2), "counts": defaultdict(list, {"a": [1]}), "name": "ns"}
    old.state[old.param_groups[0]["params"][0]] = kept
    load_state("optimizer", new, round_trip({"optimizer": state_of(old)})["optimizer"])
    back = new.state[new.param_groups[0]["params"][0]]
    assert [t.dtype for t in (back["pair"][0], back["pair"][1]["mask"])] == [torch.float64, torch.bool]
    assert back["recent"].maxlen == 2
    assert back["counts"].default_factory is list
    assert {key: back[key] for key in kept if key != "pair"} == {key: kept[key] for key in kept if key != "pair"}


def test_a_buffer_registered_while_training_stays_out_of_the_state_dict(round_trip: RoundTrip) -> None:
    """Given a buffer that the script registers late, when it is restored twice, then it is what it was."""
    modules = [nn.Linear(2, 2) for _ in range(3)]
    modules[0].register_buffer("late", torch.ones(3), persistent=False)
    for old, new in pairwise(modules):
        load_state("model", new, round_trip({"model": state_of(old)})["model"])
        assert torch.equal(new.late, torch.ones(3))
        assert "late" not in new.state_dict()
