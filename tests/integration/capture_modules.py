"""Cases for lazy capture: what modules keep: buffers, parametrizations, shared parameters, state of their own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from integration.capture_case import WIDTH, Case, Cases, loss_of, net, register, simple
from torch import nn
from torch.nn.utils import parametrizations

CASES: Cases = {}
case = register(CASES)


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
def shared_parameter() -> Case:
    model = net()
    optimizers = [torch.optim.AdamW(model.parameters()), torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.5)]

    def step(index: int) -> None:
        loss_of(model).backward()
        optimizers[index % 2].step()
        model.zero_grad()

    return Case({"model": model, "first": optimizers[0], "second": optimizers[1]}, step)


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
