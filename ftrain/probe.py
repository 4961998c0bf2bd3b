"""How much memory a state will need, before the first step has made all of it.

Optimizers make their state in their first step. The arena must be there before (FACTS 1: fresh pages cost ten
times the copy), so the state is foreseen: an optimizer of the same class and settings takes one step with a tiny
parameter of the same dtype and rank, and what it then keeps is scaled up. It runs with its own generators and
without anybody's hooks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ftrain.sharded import local_of

FALLBACK_FACTOR = 2.0
"""State per parameter byte where the optimizer cannot be probed; Adam's."""
_SIDE = 3
"""The probe has this length in every dimension."""


SCALARS_BYTES = 2 * 64
"""For a parameter's small state (a step counter), aligned."""
DESCRIPTION_BYTES = 512
"""For what the manifest says about a parameter's state."""
SLACK_BYTES = 64 << 10
"""Python values change in size from step to step."""


def foreseen_bytes(optimizers: Iterable[torch.optim.Optimizer], replicated: set[nn.Parameter], world_size: int) -> int:
    """Bytes by which this rank's part of a snapshot will grow in the first step."""
    total = float(SLACK_BYTES)
    for optimizer in optimizers:
        for parameter, size in missing_state_bytes(optimizer).items():
            total += size / (world_size if parameter in replicated else 1) + SCALARS_BYTES + DESCRIPTION_BYTES
    return math.ceil(total)


def missing_state_bytes(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, int]:
    """Bytes of state that ``optimizer`` will make for each parameter that has none yet."""
    probed: dict[Any, float] = {}
    missing = {}
    for group in optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            if optimizer.state.get(parameter) or not parameter.requires_grad:
                continue
            kind = (id(group), parameter.dtype, parameter.dim())
            local = local_of(parameter)
            if kind not in probed:
                probed[kind] = _state_per_byte(optimizer, settings, local)
            size = local.numel() * local.element_size()
            missing[parameter] = math.ceil(size * probed[kind])
    return missing


def _state_per_byte(optimizer: torch.optim.Optimizer, settings: dict[str, Any], like: torch.Tensor) -> float:
    probe = nn.Parameter(torch.zeros([_SIDE] * like.dim(), dtype=like.dtype, device=like.device))
    probe.grad = torch.zeros_like(probe)
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    settings = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in settings.items()}
    arguments = {key: settings[key] for key in optimizer.defaults if key in accepted and key in settings}
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            copy = kind([{"params": [probe], **settings}], **arguments)
            # Not copy.step(): that is wrapped to call the hooks that anybody has registered for all optimizers.
            step: Any = getattr(kind.step, "__wrapped__", kind.step)
            step(copy)
        except Exception:  # any user's optimizer may refuse any part of this, in any way
            return FALLBACK_FACTOR
    size = probe.numel() * probe.element_size()
    return sum(_size(tensor, probe) for tensor in _tensors(copy.state[probe].values())) / size


def _size(tensor: torch.Tensor, probe: torch.Tensor) -> int:
    # A scalar stays one; anything else (rows and columns of a factored moment too) counts as a whole parameter.
    if tensor.numel() <= 1 < probe.numel():
        return 0
    return probe.numel() * tensor.element_size()


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
