"""Which gradients are state.

After ``optimizer.step()`` the gradients it used are spent, and a snapshot leaves them out. Where a script
accumulates gradients over several commits, those not yet used are state: they are captured, per rank. The rule,
per parameter: a gradient is live unless a tracked optimizer has stepped with this very tensor and nothing has
written to it since. (``zero_grad(set_to_none=False)`` writes, so such zeros are captured: harmless.) Parameters
of modules whose optimizer is not tracked, or is no ``torch.optim.Optimizer``, always count as live.

A write to a DTensor's local tensor counts as one to the gradient: so FSDP2 accumulates.

A sparse gradient (``nn.Embedding(sparse=True)``) is kept as the two dense tensors that it is made of.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import nn

from ftrain.looks import Tensors
from ftrain.sharded import is_sharded, joined, local_of

_SPENT = "_ftrain_spent"
_GRAD = attrgetter("grad")


def watch_optimizer(optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
    """From now on each step of ``optimizer`` marks the gradients that it used."""
    return optimizer.register_step_post_hook(_mark_spent)


def live_gradients(parameters: Tensors) -> dict[int, Any]:
    """The gradients that are state now, by the parameter's index; sparse ones in their parts."""
    live: dict[int, Any] = {}
    if not parameters.have_gradients():
        return live
    for index, gradient in enumerate(map(_GRAD, parameters.all)):
        if gradient is not None and getattr(gradient, _SPENT, None) != count_writes(gradient):
            live[index] = _parts(gradient) if gradient.layout is torch.sparse_coo else gradient
    return live


def load_gradients(parameters: list[nn.Parameter], gradients: dict[int, Any]) -> None:
    """Put live gradients back; all others are none, as before a first backward."""
    for index, parameter in enumerate(parameters):
        gradient = gradients.get(index)
        if isinstance(gradient, dict):
            gradient = torch.sparse_coo_tensor(**gradient, check_invariants=False)
        gradient = joined(gradient, [parameter])
        parameter.grad = None if gradient is None else gradient.to(parameter.device)


def count_writes(gradient: torch.Tensor) -> int:
    """How often this tensor was written to."""
    return gradient._version + (local_of(gradient)._version if is_sharded(gradient) else 0)


def _parts(gradient: torch.Tensor) -> dict[str, Any]:
    return {
        "indices": gradient._indices(),
        "values": gradient._values(),
        "size": gradient.shape,
        "is_coalesced": gradient.is_coalesced(),
    }


def _mark_spent(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    # A mark on the tensor itself: its address or id() could come back as another gradient's.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                setattr(parameter.grad, _SPENT, count_writes(parameter.grad))
