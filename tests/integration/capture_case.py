"""A case for lazy capture: what is tracked, and what a step does to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 24


@dataclass
class Case:
    """What is tracked, and what a step does to it."""

    objects: dict[str, Any]
    step: Callable[[int], None]
    dropped: set[str] = field(default_factory=set)
    """Tensors that the guard has to find out about, each by one snapshot that is dropped."""


Cases = dict[str, Callable[[], Case]]
"""By name."""


def register(cases: Cases) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """A decorator by which what makes a case goes among ``cases``, under its own name."""

    def case(make: Callable[[], Case]) -> Callable[[], Case]:
        cases[make.__name__] = make
        return make

    return case


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
