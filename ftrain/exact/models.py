"""Who sums which gradients: DDP, FSDP2, or nobody.

Looked up once, when a script first asks for exact batches: by then its models are wrapped and tracked.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftrain.ddp import find_ddps
from ftrain.errors import ExactMisuse


@dataclass(frozen=True)
class Models:
    """The tracked models, by who sums their gradients."""

    parameters: tuple[nn.Parameter, ...]
    """All of them, each once; also those that do not learn now, for a script may change that (a GAN)."""
    whole: tuple[nn.Parameter, ...]
    """Those of which every rank has the whole gradient."""
    ddps: tuple[DistributedDataParallel, ...]
    sharded: tuple[Any, ...]
    """Modules that ``fully_shard`` was called on."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that gradients are summed over, or cut over first; None: all of the job."""
        return self.groups[0]

    @property
    def groups(self) -> tuple[dist.ProcessGroup | None, ...]:
        """Summed over one after the other, these are all ranks that gradients are summed over: HSDP's are two."""
        if self.sharded:
            group: Any = self.sharded[0]._get_fsdp_state()._fsdp_param_groups[0]
            mesh = group.mesh_info
            replicas = (mesh.replicate_process_group,) if group._is_hsdp else ()
            return (mesh.shard_process_group, *replicas)
        return (self.ddps[0].process_group if self.ddps else None,)

    @property
    def is_cut(self) -> bool:
        """Whether any rank has less than whole gradients: with one shard, HSDP's are only summed."""
        return bool(self.sharded) and dist.get_world_size(self.groups[0]) > 1

    @property
    def world_size(self) -> int:
        """How many ranks gradients are summed over."""
        if self.sharded:
            group = self.sharded[0]._get_fsdp_state()._fsdp_param_groups[0]
            replicas = group.mesh_info.replicate_mesh_size if group._is_hsdp else 1
            return int(group.mesh_info.shard_mesh_size * replicas)
        if self.ddps:
            return dist.get_world_size(self.ddps[0].process_group)
        return dist.get_world_size() if dist.is_initialized() else 1


def find_models(tracked: Iterable[Any]) -> Models:
    """Sort the modules among ``tracked``. Raises ExactMisuse where nobody sums, or more than one way at once."""
    modules = [module for module in tracked if isinstance(module, nn.Module)]
    every = list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))
    learning = [parameter for parameter in every if parameter.requires_grad]
    if not learning:
        raise ExactMisuse("exact batches need a model: ctx.track it first")
    sharded = _sharded(modules)
    whole = [parameter for parameter in every if not _is_distributed(parameter)]
    if any(map(_is_distributed, learning)) and not sharded:
        raise ExactMisuse("exact batches know DDP and fully_shard; a tracked model has DTensors without either")
    return Models(tuple(every), tuple(whole), tuple(find_ddps(list(every)).values()), sharded)


def _sharded(modules: list[nn.Module]) -> tuple[Any, ...]:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a script that shards has loaded it
    if fsdp is None:
        return ()
    parts = dict.fromkeys(part for module in modules for part in module.modules())
    return tuple(
        part for part in parts if isinstance(part, fsdp.FSDPModule) and part._get_fsdp_state()._fsdp_param_groups
    )


class Forwards:
    """Which DDPs wait for a backward that did not come (detached samples, an evaluation).

    Such a one would take the next step's first backward for it, which is not to be summed yet.
    """

    def __init__(self, ddps: Iterable[DistributedDataParallel]) -> None:
        self._waiting: set[nn.Module] = set()
        for ddp in ddps:
            ddp.register_forward_pre_hook(self._on_forward)

    def _on_forward(self, ddp: nn.Module, _inputs: Any) -> None:
        if ddp.require_backward_grad_sync and torch.is_grad_enabled():
            self._waiting.add(ddp)

    def summed(self, ddp: DistributedDataParallel) -> None:
        """Its backward has come."""
        self._waiting.discard(ddp)

    def forget(self) -> None:
        """A step begins. Not for all each time: DDP lays its buckets anew after it."""
        for ddp in self._waiting:
            ddp.reducer._reset_state()  # type: ignore[union-attr, operator]
        self._waiting.clear()


def all_alike(content: bytes, models: Models) -> bool:
    """Whether all ranks that gradients are summed over have this content. A collective."""
    if models.world_size == 1:
        return True
    number = int.from_bytes(hashlib.sha256(content).digest()[:7], "big")
    ends = torch.tensor([number, -number], dtype=torch.int64, device=models.parameters[0].device)
    for group in models.groups:
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=group)
    largest, smallest = ends.tolist()
    return bool(largest == -smallest)


def _is_distributed(parameter: torch.Tensor) -> bool:
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(parameter, tensor.DTensor)


def refuse_leftovers(parameters: Iterable[nn.Parameter]) -> None:
    """A step begins without gradients. Raises ExactMisuse where one is there that is not all zeros."""
    for parameter in parameters:
        if parameter.grad is not None:
            if bool(_local(parameter.grad).count_nonzero()):
                raise ExactMisuse("gradients are left from before: call optimizer.zero_grad() before ctx.microbatches")
            parameter.grad = None


def refuse_unsummed(sharded: Iterable[Any]) -> None:
    """A backward pass is over. Raises ExactMisuse where FSDP2 was told to keep its gradients back."""
    if not all(group.reduce_grads for part in sharded for group in part._get_fsdp_state()._fsdp_param_groups):
        raise ExactMisuse("FSDP2 was told not to sum gradients: leave set_requires_gradient_sync to ctx.microbatches")


def _local(tensor: Any) -> Any:
    return tensor.to_local() if _is_distributed(tensor) else tensor
