"""Cases for lazy capture: what changes the state, and when: optimizers, averages, backward passes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from integration.capture_case import WIDTH, Case, Cases, loss_of, net, register, simple
from torch import nn

CASES: Cases = {}
case = register(CASES)

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
def gan() -> Case:
    one, two = net(), net()
    optimizers = [torch.optim.AdamW(one.parameters(), fused=True), torch.optim.SGD(two.parameters(), lr=0.1)]

    def step(index: int) -> None:
        loss_of((one, two)[index % 2]).backward()
        optimizers[index % 2].step()
        optimizers[index % 2].zero_grad()

    return Case({"one": one, "two": two, "first": optimizers[0], "second": optimizers[1]}, step)


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
def masters() -> Case:
    """In float32, of a model in bfloat16; nobody but the optimizer has them."""
    model = net().bfloat16()
    optimizer = torch.optim.AdamW([nn.Parameter(each.detach().float()) for each in model.parameters()])

    def step(index: int) -> None:
        F.mse_loss(model(torch.randn(16, 8).bfloat16()), torch.randn(16, 4).bfloat16()).backward()
        pairs = list(zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True))
        for parameter, master in pairs:
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for parameter, master in pairs:
                parameter.copy_(master)
        model.zero_grad()

    return Case({"model": model, "optimizer": optimizer}, step)
