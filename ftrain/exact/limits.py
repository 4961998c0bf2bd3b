"""Where exactness ends: what can be seen of that is refused, or said once.

SyncBatchNorm makes a step depend on the number of ranks in any mode. The rest concerns bit-exact mode only, and what
cannot be seen (kinds of processors, reductions over shards in the script) is in docs/exactness.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ftrain.errors import ExactMisuse
from ftrain.exact.models import Models

NOISE = (
    "random numbers were drawn in a loop over ctx.microbatches outside ctx.rng: they belong to the rank, and bit-exact "
    "mode does not cover them (docs/exactness.md)"
)


def refuse_across_ranks(tracked: Iterable[Any]) -> None:
    """Raises ExactMisuse where a layer looks across the ranks' micro-batches."""
    if any(isinstance(part, nn.SyncBatchNorm) and part.training for part in _parts(tracked)):
        raise ExactMisuse(
            "SyncBatchNorm looks across the ranks' micro-batches, so a step depends on how many ranks there are: use "
            "BatchNorm, which looks at one micro-batch, or a norm of each sample"
        )


def warn_of_limits(tracked: Iterable[Any], models: Models) -> None:
    """What bit-exact mode does not cover in this script."""
    for limit in _limits(list(tracked), models):
        warnings.warn(f"{limit} (docs/exactness.md)", stacklevel=3)


def generators() -> bytes:
    """Where torch's default generators are: what they have drawn shows in it."""
    state = torch.get_rng_state().numpy().tobytes()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state += torch.cuda.get_rng_state().numpy().tobytes()
    return state


def _limits(tracked: list[Any], models: Models) -> Iterator[str]:
    norms = [part for part in _parts(tracked) if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training]
    if any(part.track_running_stats for part in norms):
        yield (
            "BatchNorm's running statistics are each rank's own, of the micro-batches that it computed: bit-exact mode "
            "does not cover them"
        )
    optimizers = [one for one in tracked if isinstance(one, torch.optim.Optimizer)]
    if models.sharded and any(_treats_ends_apart(optimizer) for optimizer in optimizers):
        yield (
            "fused optimizers, and SGD on bfloat16, may round the ends of FSDP2's shards otherwise: use foreach, or "
            "float32, in bit-exact mode"
        )
    if any(parameter.is_cuda for parameter in models.parameters) and not torch.are_deterministic_algorithms_enabled():
        yield "bit-exact mode needs torch.use_deterministic_algorithms(True) on GPUs"


def _treats_ends_apart(optimizer: torch.optim.Optimizer) -> bool:
    groups = optimizer.param_groups
    plain = isinstance(optimizer, torch.optim.SGD)
    half = any(parameter.dtype is torch.bfloat16 for group in groups for parameter in group["params"])
    return any(group.get("fused") for group in groups) or (plain and half)


def _parts(tracked: Iterable[Any]) -> Iterator[nn.Module]:
    return (part for module in tracked if isinstance(module, nn.Module) for part in module.modules())
