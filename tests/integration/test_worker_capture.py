"""Models with awkward state, captured at every step while they train on, and compared bit by bit."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer would import it, for more than a second
import torch.nn.functional as F
from integration.worker_lane import Rank
from integration.worker_states import assert_same
from torch import nn
from torch.nn.utils import parametrizations

from ftrain import flight, plan, restore, samples
from ftrain.capture import SnapshotDropped
from ftrain.errors import GenerationEnded
from ftrain.state import state_of
from ftrain_snapshot import arena, lane, manifest

STEPS = 7
WIDTH = 24

CASES: dict[str, Callable[[], Case]] = {}


@dataclass
class Case:
    """What is tracked, and what a step does to it."""

    objects: dict[str, Any]
    step: Callable[[int], None]
    dropped: set[str] = field(default_factory=set)
    """Tensors that the guard has to find out about, each by one snapshot that is dropped."""


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def net(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), *extra, nn.Linear(WIDTH, 4))


def loss_of(model: nn.Module) -> torch.Tensor:
    return F.mse_loss(model(torch.randn(16, 8)), torch.randn(16, 4))


def simple(model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[int], None] = lambda i: None) -> Case:
    def step(index: int) -> None:
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(index)

    return Case({"model": model, "optimizer": optimizer}, step)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw_foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, fused=True),
    "adamw_loop": lambda p: torch.optim.AdamW(p, foreach=False),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adam_fused_tensor_lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_momentum_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd_nesterov_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "sgd_loop": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "asgd": lambda p: torch.optim.ASGD(p),
}
for _name, _make in OPTIMIZERS.items():
    CASES[_name] = lambda make=_make: (lambda model: simple(model, make(model.parameters())))(net())  # type: ignore[misc]


@case
def lbfgs() -> Case:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3, history_size=2)
    inputs, targets = torch.randn(16, 8), torch.randn(16, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        return loss

    return Case({"model": model, "optimizer": optimizer}, lambda index: optimizer.step(closure) and None)  # type: ignore[arg-type, func-returns-value]


@case
def weight_clipping() -> Case:
    model = net()

    def clip(index: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.05, 0.05)

    return simple(model, torch.optim.AdamW(model.parameters(), fused=True), clip)


@case
def weight_clipping_by_data() -> Case:
    model = net()
    return simple(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        lambda index: [p.data.clamp_(-0.05, 0.05) for p in model.parameters()] and None,  # type: ignore[func-returns-value]
    )


def averaged(update: Callable[[nn.Module, nn.Module], None], every: int, dropped: set[str]) -> Case:
    model = net()
    average = copy.deepcopy(model).requires_grad_(False)
    made = simple(
        model, torch.optim.AdamW(model.parameters()), lambda i: update(average, model) if (i + 1) % every == 0 else None
    )
    made.objects["average"] = average
    made.dropped = dropped
    return made


@torch.no_grad()
def by_lerp(average: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 0.1)


def by_data(average: nn.Module, model: nn.Module) -> None:
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)


def by_load(average: nn.Module, model: nn.Module) -> None:
    average.load_state_dict({k: 0.9 * v + 0.1 * model.state_dict()[k] for k, v in average.state_dict().items()})


# The last one's bias shares its chunk with the manifest, and so is copied each time anyway.
ALL = {f"average.{layer}" for layer in ("0.weight", "0.bias", "2.weight", "2.bias", "3.weight")}
for _every in (1, 3):
    CASES[f"average_lerp_{_every}"] = lambda e=_every: averaged(by_lerp, e, set())  # type: ignore[misc]
    CASES[f"average_data_{_every}"] = lambda e=_every: averaged(by_data, e, ALL)  # type: ignore[misc]
    CASES[f"average_load_{_every}"] = lambda e=_every: averaged(by_load, e, set())  # type: ignore[misc]


@case
def swa() -> Case:
    model = net(nn.BatchNorm1d(WIDTH))
    average = torch.optim.swa_utils.AveragedModel(model)
    made = simple(model, torch.optim.AdamW(model.parameters()), lambda index: average.update_parameters(model))
    made.objects["average"] = average
    return made


@case
def tied_weights() -> Case:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    made = simple(model, torch.optim.AdamW(model.parameters()))
    made.objects["head"] = model[3]
    return made


@case
def spectral_norm_old() -> Case:
    model = net(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))
    return simple(model, torch.optim.AdamW(model.parameters()))


@case
def spectral_norm_new() -> Case:
    model = net(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))
    return simple(model, torch.optim.AdamW(model.parameters()))


@case
def weight_norm() -> Case:
    model = net(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))
    return simple(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@case
def batch_norm_switching() -> Case:
    model = net(nn.BatchNorm1d(WIDTH))
    return simple(model, torch.optim.AdamW(model.parameters()), lambda index: model.train(index % 3 == 0) and None)  # type: ignore[func-returns-value]


@case
def gan() -> Case:
    one, two = net(), net()
    optimizers = [torch.optim.AdamW(one.parameters(), fused=True), torch.optim.SGD(two.parameters(), lr=0.1)]

    def step(index: int) -> None:
        loss_of((one, two)[index % 2]).backward()
        optimizers[index % 2].step()
        optimizers[index % 2].zero_grad()

    return Case({"one": one, "two": two, "first": optimizers[0], "second": optimizers[1]}, step)


@case
def shared_parameter() -> Case:
    model = net()
    optimizers = [torch.optim.AdamW(model.parameters()), torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.5)]

    def step(index: int) -> None:
        loss_of(model).backward()
        optimizers[index % 2].step()
        model.zero_grad()

    return Case({"model": model, "first": optimizers[0], "second": optimizers[1]}, step)


@case
def accumulation() -> Case:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(index: int) -> None:
        (loss_of(model) / 3).backward()
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()

    return Case({"model": model, "optimizer": optimizer}, step)


@case
def in_backward() -> Case:
    model = net()
    optimizers = {parameter: torch.optim.AdamW([parameter]) for parameter in model.parameters()}

    def update(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    named = {f"optimizer{index}": optimizer for index, optimizer in enumerate(optimizers.values())}
    return Case({"model": model, **named}, lambda index: loss_of(model).backward())


@case
def freezing() -> Case:
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad] + [model[0].weight])

    def turn(index: int) -> None:
        model[0].weight.requires_grad_(index in (2, 3, 4))
        model[3].requires_grad_(index < 4)
        if index == 3:
            optimizer.add_param_group({"params": [model[0].bias], "lr": 0.1})
            model[0].bias.requires_grad_(True)

    made = simple(model, optimizer, turn)
    return made


class Growing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mask", torch.ones(200, 200))
        self.register_buffer("rarely", torch.ones(200, 200))
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.hidden += 1
        self.seen = torch.cat([self.seen, x.mean().detach().reshape(1)])
        if self.calls == 6:
            self.rarely[0, 0] += 1
        return self.body(x)  # type: ignore[no-any-return]


@case
def growing_buffers() -> Case:
    model = Growing()
    return simple(model, torch.optim.AdamW(model.parameters()))


class Resized(nn.Module):
    """Its buffers change their shapes in place, within their memory and beyond it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("joined", torch.zeros(3), persistent=False)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.cache.resize_(2 + self.calls * 5 % 4).fill_(self.calls)
            torch.cat([torch.ones(1 + self.calls * 3 % 5), self.cache], out=self.joined)
        return self.body(x)  # type: ignore[no-any-return]


@case
def resized_buffers() -> Case:
    model = Resized()
    return simple(model, torch.optim.AdamW(model.parameters()))


class Kinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        for name, tensor in {
            "halves": torch.randn(33).half(), "brain": torch.randn(33).bfloat16(), "flags": torch.rand(9) > 0.5,
            "scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "spaced": torch.randn(20)[::3],
            "turned": torch.randn(3, 5).t(),
            "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        }.items():  # fmt: skip
            self.register_buffer(name, tensor)
        self.complex = nn.Parameter(torch.randn(5, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.randn(500, 3), requires_grad=False)
        self.half_weight = nn.Parameter(torch.randn(7).bfloat16())
        self.zero = nn.Parameter(torch.randn(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        more = self.complex.abs().sum() + self.half_weight.float().sum() + self.zero
        return self.body(x) * (1 + 0.01 * more)  # type: ignore[no-any-return]


@case
def kinds_of_tensors() -> Case:
    model = Kinds()
    return simple(model, torch.optim.AdamW(model.parameters(), foreach=False))


@case
def scaler_and_scheduler() -> Case:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def step(index: int) -> None:
        loss = loss_of(model) * (float("inf") if index == 3 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()

    return Case({"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}, step)


@case
def untracked_optimizer() -> Case:
    made = simple(model := net(), torch.optim.AdamW(model.parameters(), fused=True))
    del made.objects["optimizer"]
    return made


class Plain:
    """An optimizer that is none of torch's."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.momentum = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            momentum.mul_(0.9).add_(parameter.grad)  # type: ignore[arg-type]
            parameter.sub_(momentum, alpha=0.01)
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(saved)


@case
def optimizer_of_ones_own() -> Case:
    model = net()
    optimizer = Plain(list(model.parameters()))

    def step(index: int) -> None:
        loss_of(model).backward()
        optimizer.step()

    return Case({"model": model, "optimizer": optimizer}, step)


class Lookahead(torch.optim.Optimizer):
    """Keeps a view of the parameter in its state, a counter, and state that belongs to no parameter."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["alias"] = parameter.detach()
                state["count"] = state.get("count", 0) + 1
                state["slow"] = state["slow"] * 0.9 + parameter * 0.1 if "slow" in state else parameter.clone()
                parameter.sub_(parameter.grad, alpha=group["lr"])
        self.state["all"] = {"steps": torch.tensor(len(self.state))}


@case
def state_that_aliases() -> Case:
    model = net()
    return simple(model, Lookahead(model.parameters()))


@case
def state_loaded_midway() -> Case:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    kept: list[Any] = []

    def swap(index: int) -> None:
        if index == 2:
            kept.append(copy.deepcopy(optimizer.state_dict()))
        if index == 4:
            optimizer.load_state_dict(kept.pop())
        if index == 5:
            model[0].weight.data = torch.randn(WIDTH, 8)
            model[3] = nn.Linear(WIDTH, 4)

    return simple(model, optimizer, swap)


class Own(nn.Module):
    """Has a say in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.counter = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.counter += 1
        return self.body(x)  # type: ignore[no-any-return]

    def get_extra_state(self) -> Any:
        return {"counter": self.counter, "fresh": torch.full((3,), self.counter)}

    def set_extra_state(self, state: Any) -> None:
        self.counter = state["counter"]


@case
def extra_state() -> Case:
    model = Own()
    return simple(model, torch.optim.AdamW(model.parameters()))


class Meddling:
    """Writes to what others own whenever it is asked for its state."""

    def __init__(self, model: nn.Module) -> None:
        self.weight = next(model.parameters())

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        self.weight.mul_(1)
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@case
def state_dict_that_writes() -> Case:
    model = net()
    made = simple(model, torch.optim.AdamW(model.parameters()))
    made.objects["meddling"] = Meddling(model)
    return made


@case
def made_in_inference_mode() -> Case:
    """Buffers that only inference mode may write to: a cache that an evaluation has made."""
    model = net()
    with torch.inference_mode():
        model.register_buffer("table", torch.randn(100, 200))
        model.register_buffer("cache", torch.randn(1, 3).expand(4, 3), persistent=False)

    def turn(index: int) -> None:
        with torch.inference_mode():
            model.table.add_(1)  # type: ignore[operator, union-attr]
            model.cache[:1].add_(1)  # type: ignore[index, operator, union-attr]

    return simple(model, torch.optim.AdamW(model.parameters()), turn)


@case
def scripted() -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(net(nn.BatchNorm1d(WIDTH)))
    return simple(model, torch.optim.AdamW(model.parameters()))


def copied(objects: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(state_of(tracked)) for name, tracked in objects.items()}


def fresh_like(make: Callable[[], Case], rank: Rank, states: dict[str, Any]) -> dict[str, Any]:
    """New objects of the same structure, or copies where a run has changed it."""
    try:
        objects = make().objects
        for name, state in states.items():
            probe = copy.deepcopy(objects[name])
            probe.load_state_dict(copy.deepcopy(state["state"]))
        return make().objects
    except (RuntimeError, ValueError, KeyError, IndexError):
        objects = copy.deepcopy(rank.objects)
        for path, value in states["model"]["state"].items():
            owner, _, leaf = path.rpartition(".")
            buffers = objects["model"].get_submodule(owner)._buffers
            if leaf in buffers and buffers[leaf].shape != value.shape:
                buffers[leaf] = torch.empty_like(value)
        return objects


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and buffers so small that what counts for large models counts for small ones."""
    for module in (arena, lane, manifest, plan, flight, samples, restore):
        monkeypatch.setattr(module, "CHUNK_BYTES", 512)
    monkeypatch.setattr(plan, "SMALL_BYTES", 1 << 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", CASES)
def test_every_snapshot_is_the_state_at_its_commit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    made = CASES[name]()
    states: dict[int, dict[str, Any]] = {}
    sealed = []
    with warnings.catch_warnings(record=True) as caught, Rank(tmp_path, made.objects, room=3.0) as rank:
        warnings.simplefilter("always")
        for index in range(STEPS):
            made.step(index)  # while the last capture is under way
            rank.finish()
            for snapshot in rank.line.seals[len(sealed) :]:
                sealed.append(snapshot)
                objects = fresh_like(CASES[name], rank, states[snapshot.version])
                rank.read(snapshot, objects)
                assert_same(states[snapshot.version], copied(objects), f"{name}@{snapshot.version}")
            states[index] = copied(made.objects)
            rank.commit(index)
    drops = [str(warning.message) for warning in caught if warning.category is SnapshotDropped]
    for path in made.dropped:
        assert any(path in text for text in drops), drops
    assert bool(drops) == bool(made.dropped), drops
    assert len(rank.line.skips) == len(drops) <= 1
    assert len(rank.line.seals) == STEPS - len(drops)


def test_what_does_not_change_is_not_copied_again(tmp_path: Path) -> None:
    """Given a large frozen part, when it is captured again, then only what steps change is copied."""
    model = nn.Sequential(nn.Linear(1024, 4096), nn.Linear(4096, 16))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[1].parameters())
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        for index in range(4):
            model(torch.randn(2, 1024)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            snapshot = rank.commit(index)
            rank.finish()
            header = rank.region(snapshot).header()[1]
            assert header is not None
            if index == 0:
                assert rank.region(snapshot).copied_bytes == header.unit_bytes
            if index > 1:
                assert rank.region(snapshot).copied_bytes <= 3 << 20
                assert header.reference == rank.line.seals[-2]
        assert header.data_bytes > 16 << 20


@pytest.mark.parametrize("way", ["counted", "by_data"])
def test_a_write_between_commit_and_copy_drops_the_snapshot_and_is_told(tmp_path: Path, way: str) -> None:
    """Given a write to a parameter after commit, when the copy is compared, then no snapshot is made of it."""
    model = nn.Linear(512, 512)
    optimizer = torch.optim.AdamW(model.parameters())
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        for index in range(3):
            model(torch.randn(2, 512)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            state = copied(rank.objects)
            if index == 1:  # hold the thread back: the write comes before the copy
                rank.capturer._crew.take = lambda flight: None  # type: ignore[method-assign]
            snapshot = rank.commit(index)
            if index == 1:
                with torch.no_grad():
                    (model.weight.data if way == "by_data" else model.weight).mul_(0.5)
                del rank.capturer._crew.take
                assert rank.capturer._flight is not None
                rank.capturer._crew.take(rank.capturer._flight)
                with pytest.warns(SnapshotDropped, match=r"step 1 was dropped: model\.weight changed"):
                    rank.finish()
                assert rank.line.skips == [snapshot]
        rank.finish()
        assert [snapshot.version for snapshot in rank.line.seals] == [0, 2]
        objects = {"model": (fresh := nn.Linear(512, 512)), "optimizer": torch.optim.AdamW(fresh.parameters())}
        rank.read(rank.line.seals[-1], objects)
        assert_same(state, copied(objects), "")


@pytest.mark.parametrize("error", [GenerationEnded, SystemExit])
def test_a_signal_while_the_training_thread_copies_loses_no_chunk(tmp_path: Path, error: type[BaseException]) -> None:
    """Given a signal that ends the generation while the optimizer waits for the copy, when the capture is finished,
    then it is sealed, and at once."""
    model = nn.Linear(1024, 2048)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Rank(tmp_path, {"model": model, "optimizer": optimizer}) as rank:
        rank.capturer._crew.take = lambda flight: None  # type: ignore[method-assign]
        snapshot = rank.commit(0)
        del rank.capturer._crew.take
        under_way = rank.capturer._flight
        assert under_way is not None
        copy_chunk, copied_by_training = under_way._copy, []

        def interrupted(chunk: int) -> None:
            if threading.current_thread() is threading.main_thread():
                copied_by_training.append(chunk)
                if chunk == 3:
                    raise error
            copy_chunk(chunk)

        under_way._copy = interrupted  # type: ignore[method-assign]
        model(torch.randn(2, 1024)).sum().backward()
        with pytest.raises(error):
            optimizer.step()
        assert copied_by_training == [0, 1, 2, 3]
        rank.capturer._crew.take(under_way)
        rank.finish()
        assert rank.line.seals == [snapshot]
        state = copied(rank.objects)
        objects = {"model": (fresh := nn.Linear(1024, 2048)), "optimizer": torch.optim.SGD(fresh.parameters(), lr=0.1)}
        rank.read(snapshot, objects)
        assert_same(state, copied(objects), "")
