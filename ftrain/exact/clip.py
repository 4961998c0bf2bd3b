"""A gradient norm that does not depend on how gradients are cut among ranks.

``clip_grad_norm_`` over FSDP2's shards adds up each rank's squares first, so its last bits depend on the world. Here
squares become integers of 52 bits below the largest gradient's power of two, in two halves of 26: sums of integers are
the same in any order, and one norm for all that is left to round. Up to 2**36 elements fit into the sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ftrain.errors import ExactMisuse
from ftrain.exact.models import Models

HALF_BITS = 26


def clip_grad_norm(models: Models, max_norm: float) -> float:
    """Scale the models' gradients down to ``max_norm``, as torch's ``clip_grad_norm_`` does. A collective.

    Returns the norm before; one that is not finite makes all gradients so.
    """
    whole = [p.grad for p in models.whole if p.grad is not None]
    own = {id(parameter) for parameter in models.whole}
    cut = [_shard(p.grad) for p in models.parameters if id(p) not in own and p.grad is not None]
    norm = _norm(whole, cut, models)
    factor = min(1.0, max_norm / (norm + 1e-6)) if not math.isnan(norm) else norm
    for gradient in (*whole, *cut):
        gradient.mul_(factor)
    return norm


def _norm(whole: Sequence[Tensor], cut: Sequence[Tensor], models: Models) -> float:
    device = models.parameters[0].device
    peak = torch.tensor(_peak([*whole, *cut]), dtype=torch.float64, device=device)
    across = bool(models.sharded) and models.world_size > 1
    if across:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=models.group)
    largest = peak.item()
    if largest in (0.0, math.inf):
        return math.nan if largest else 0.0
    exponent = math.frexp(largest)[1]
    halves = torch.tensor(_halves(cut, exponent), dtype=torch.int64, device=device)
    if across:
        dist.all_reduce(halves, group=models.group)
    high, low = (a + b for a, b in zip(halves.tolist(), _halves(whole, exponent), strict=True))
    return math.ldexp(math.sqrt((high << HALF_BITS) + low), exponent - HALF_BITS)


def _peak(gradients: Iterable[Tensor]) -> float:
    """The largest absolute value; infinity if any is not finite."""
    peaks = [gradient.abs().max().item() for gradient in gradients if gradient.numel()]
    return max((peak if math.isfinite(peak) else math.inf for peak in peaks), default=0.0)


def _halves(gradients: Iterable[Tensor], exponent: int) -> list[int]:
    """The sum of squares in units of ``4 ** (exponent - 13)``; what is left, in units of that over ``2 ** 26``."""
    high = low = 0
    for gradient in gradients:
        square = (gradient.double() * 2.0**-exponent).square_().mul_(1 << HALF_BITS)
        units = square.floor()
        high += int(units.to(torch.int64).sum())
        low += int((square - units).mul_(1 << HALF_BITS).round_().to(torch.int64).sum())
    return [high, low]


def _shard(gradient: Tensor) -> Tensor:
    if gradient.device_mesh.ndim > 1:  # type: ignore[attr-defined]
        raise ExactMisuse("ctx.clip_grad_norm knows gradients cut along one mesh dimension only")
    return gradient.to_local()  # type: ignore[attr-defined,no-any-return]
