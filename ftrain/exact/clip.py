"""A gradient norm that does not depend on how gradients are cut among ranks.

``clip_grad_norm_`` over FSDP2's shards adds up each rank's squares first, so its last bits depend on the world. Here
squares become integers of 52 bits below the largest gradient's power of two, in two halves of 26: sums of integers are
the same in any order, and one norm for all that is left to round. Up to 2**36 elements fit into the sums. What several
ranks hold (norms beside tensor parallelism, HSDP's replicas) one of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

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
    own = {id(parameter) for parameter in models.whole}
    cut: list[Any] = [p for p in models.parameters if p.requires_grad and id(p) not in own]
    mesh = _widest(cut) if cut else None
    whole = [_real(p.grad) for p in models.whole if p.grad is not None]
    held = [(_real(p.grad.to_local()), _is_first(p, mesh)) for p in cut if p.grad is not None]
    gradients = [*whole, *(local for local, _ in held)]
    sums = _Sums(models.parameters[0].device, mesh)
    norm = _norm(_peak(gradients), whole, [local for local, is_first in held if is_first], sums)
    factor = min(1.0, max_norm / (norm + 1e-6)) if not math.isnan(norm) else norm
    for gradient in gradients:
        gradient.mul_(factor)
    return norm


class _Sums(NamedTuple):
    """Over all ranks of a mesh; without one this rank has all."""

    device: torch.device
    mesh: Any

    def over_ranks(self, mine: Sequence[float], dtype: torch.dtype, op: Any = dist.ReduceOp.SUM) -> list[Any]:
        values = torch.tensor(mine, dtype=dtype, device=self.device)
        for dim in range(self.mesh.ndim if self.mesh is not None else 0):
            if self.mesh.size(dim) > 1:
                dist.all_reduce(values, op=op, group=self.mesh.get_group(dim))
        return values.tolist()


def _norm(peak: float, whole: Sequence[Tensor], counted: Sequence[Tensor], sums: _Sums) -> float:
    """Of all gradients; ``peak``: the largest value here, ``counted``: the parts of cut ones that this rank counts."""
    (largest,) = sums.over_ranks([peak], torch.float64, dist.ReduceOp.MAX)
    if largest in (0.0, math.inf):
        return math.nan if largest else 0.0
    exponent = math.frexp(largest)[1]
    halves = sums.over_ranks(_halves(counted, exponent), torch.int64)
    high, low = (a + b for a, b in zip(halves, _halves(whole, exponent), strict=True))
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


def _real(gradient: Tensor) -> Tensor:
    """The same memory as real numbers."""
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def _widest(parameters: Iterable[Any]) -> Any:
    """The mesh along whose dimensions these are cut, or copied. Raises ExactMisuse if there is none."""
    meshes = dict.fromkeys(parameter.device_mesh for parameter in parameters)
    widest = max(meshes, key=lambda mesh: mesh.ndim)
    names = set(widest.mesh_dim_names or ())
    if any(mesh != widest and not names.issuperset(mesh.mesh_dim_names or [None]) for mesh in meshes):
        raise ExactMisuse("ctx.clip_grad_norm knows gradients that are cut along dimensions of one mesh only")
    return widest


def _is_first(parameter: Any, widest: Any) -> bool:
    """Of the ranks that hold the same part; what has not all dimensions of the mesh is the same along the others."""
    mesh = parameter.device_mesh
    names = widest.mesh_dim_names
    dims = range(mesh.ndim) if mesh == widest else [names.index(name) for name in mesh.mesh_dim_names]
    cut = {dim for dim, placement in zip(dims, parameter.placements, strict=True) if not placement.is_replicate()}
    return all(place == 0 for dim, place in enumerate(widest.get_coordinate()) if dim not in cut)
