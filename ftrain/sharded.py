"""Sharded tensors (DTensor) and FSDP2, as the rest of ftrain sees them: a local tensor that has the bytes, and a spec.

Their classes are only looked for where a script has them loaded already: they take seconds to import. The memory of a
local tensor stays where it is (FACTS 7), but it must be looked up each time: FSDP2 replaces the object when it loads.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn

from ftrain.errors import StateMismatch
from ftrain.looks import Containers, Tensors
from ftrain.shards import PARTIAL, REPLICATE, SHARD, STRIDED, Mesh, Part, ShardSpec, replaced

_NOTED = "_ftrain_mesh"
_STATE_HOOKS = "torch.distributed.fsdp._fully_shard."
"""Where FSDP2's own hooks for ``state_dict`` come from: they shard again what is gathered."""


def is_sharded(value: object) -> bool:
    """It is a DTensor."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: Tensor) -> Tensor:
    """The part of a DTensor that is here; any other tensor itself. Waits for the collective that makes it, if any."""
    if not is_sharded(tensor):
        return tensor
    local: Any = tensor._local_tensor  # type: ignore[attr-defined]
    return local.trigger_wait() if hasattr(local, "trigger_wait") else local  # type: ignore[no-any-return]


def spec_of(tensor: Any) -> ShardSpec:
    """What a DTensor is. Raises ValueError for placements that are none of torch's plain ones."""
    placements = tuple(_placement(placement) for placement in tensor.placements)
    return ShardSpec(tuple(tensor.shape), tuple(tensor.stride()), placements, mesh_of(tensor.device_mesh))


def mesh_of(mesh: Any) -> Mesh:
    """A device mesh in numbers; noted on it, since torch works its ranks out anew each time it is asked."""
    noted: Mesh | None = vars(mesh).get(_NOTED)
    if noted is None:
        names, ranks = mesh.mesh_dim_names, mesh.mesh
        noted = Mesh(
            mesh.device_type,
            tuple(ranks.shape),
            tuple(ranks.flatten().tolist()),
            None if names is None else tuple(names),
        )
        setattr(mesh, _NOTED, noted)
    return noted


def is_same_everywhere(tensor: Tensor, world_size: int) -> bool:
    """A DTensor of which every rank of the job has all."""
    if not is_sharded(tensor):
        return False
    whole = all(placement.is_replicate() for placement in tensor.placements)  # type: ignore[attr-defined]
    return whole and tensor.device_mesh.size() == world_size  # type: ignore[attr-defined]


def joined(value: Any, objects: Iterable[Any]) -> Any:
    """``value`` with a DTensor for each `Part`; dictionaries and lists are changed in place.

    Each goes onto the very mesh of a live DTensor of these objects. Raises StateMismatch if none has such a mesh.
    """
    return replaced(value, _Joiner(objects).tensor)


class _Joiner:
    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = objects
        self._meshes: dict[Mesh, Any] | None = None
        self._made: dict[tuple[int, ShardSpec], Any] = {}

    def tensor(self, part: Part) -> Any:
        key = id(part.local), part.spec
        if key not in self._made:  # tied tensors come back as one
            self._made[key] = self._build(part.local, part.spec)
        return self._made[key]

    def _build(self, local: Tensor, spec: ShardSpec) -> Any:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
        from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
        from torch.distributed.tensor.placement_types import _StridedShard

        def placement(kind: Any, *more: Any) -> Any:
            if kind == STRIDED:
                return _StridedShard(more[0], split_factor=more[1])
            return {REPLICATE: Replicate, SHARD: Shard, PARTIAL: Partial}[kind](*more)

        meta = TensorMeta(torch.Size(spec.shape), spec.strides, local.dtype)
        placements = tuple(placement(*each) for each in spec.placements)
        made: Any = DTensor
        return made(local, DTensorSpec(self._mesh(spec), placements, tensor_meta=meta), requires_grad=False)

    def _mesh(self, spec: ShardSpec) -> Any:
        if self._meshes is None:
            live = (tensor.device_mesh for tensor in chain.from_iterable(map(_tensors_of, self._objects)))
            self._meshes = {}
            for mesh in live:
                self._meshes.setdefault(mesh_of(mesh), mesh)
        for known, mesh in self._meshes.items():
            if known._replace(names=spec.mesh.names) == spec.mesh:
                return mesh
        raise StateMismatch(
            f"the snapshot holds a tensor {spec}; no tracked DTensor lies on such a mesh: is the layout another one?"
        )


def _tensors_of(tracked: Any) -> Iterator[Any]:
    """The DTensors that an object has now."""
    found: Iterable[Any]
    if isinstance(tracked, Tensor):
        found = [tracked]
    elif isinstance(tracked, nn.Module):
        found = chain(tracked.parameters(), tracked.buffers())
    elif isinstance(tracked, torch.optim.Optimizer):
        found = chain.from_iterable(group["params"] for group in tracked.param_groups)
    else:
        found = leaves(tracked.state_dict())
    return filter(is_sharded, found)


def leaves(value: Any) -> Iterator[Any]:
    """All that is in it, in dictionaries and lists within each other."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | deque):
        for item in value:
            yield from leaves(item)
    else:
        yield value


# FSDP2.


class Gathering:
    """The modules among some that ``fully_shard`` was applied to, and so gather their parameters for a while."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        loaded: Any = sys.modules.get("torch.distributed.fsdp")
        kind = getattr(loaded, "FSDPModule", ())
        states = [module._get_fsdp_state() for module in modules if isinstance(module, kind)]
        self._groups = list(chain.from_iterable(map(_groups_of, states)))
        self._parameters = list(chain.from_iterable(group.fsdp_params for group in self._groups))
        self._known: Containers | None = None

    def reshard(self) -> None:
        """Have them show their own, sharded parameters: an evaluation leaves some gathered (FACTS 7)."""
        for group in self._groups:
            if not group.is_sharded:
                group.reshard()

    def is_settled(self) -> bool:
        """Whether all gradients have been reduced: what FSDP2 accumulates before that lies where no snapshot looks."""
        if self._known is None or not self._known.are_same():
            self._look()
        return not (self._holds or self._gathered.have_gradients()) and all(
            map(is_, map(_PARTIAL, self._groups), _NONE)
        )

    def _look(self) -> None:
        """Find the gathered parameters; each is made at the first forward, and then kept."""
        there = [parameter for parameter in self._parameters if hasattr(parameter, "_unsharded_param")]
        self._gathered = Tensors(parameter._unsharded_param for parameter in there)
        self._holds = any(parameter.unsharded_accumulated_grad is not None for parameter in there)
        if len(there) == len(self._parameters):
            self._known = Containers(members=map(vars, there), keys=_ACCUMULATING)


_ACCUMULATING = ("_unsharded_param", "unsharded_accumulated_grad")
_PARTIAL = attrgetter("_partial_reduce_output")
_NONE = repeat(None)


def _groups_of(state: Any) -> list[Any]:
    several = getattr(state, "_fsdp_param_groups", None)
    if several is not None:
        return list(several)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]  # torch before 2.12


def is_state_hook(hook: Any) -> bool:
    """A hook that FSDP2 has put on a module's ``state_dict``, and that finds nothing to do after `reshard`."""
    return str(getattr(hook, "__module__", "")).startswith(_STATE_HOOKS)


def _placement(placement: Any) -> tuple[str | int, ...]:
    kind = type(placement).__name__
    if kind == "Replicate":
        return (REPLICATE,)
    if kind == "Shard":
        return SHARD, placement.dim
    if kind == "_StridedShard":
        return STRIDED, placement.dim, int(placement.split_factor)
    if kind == "Partial":
        return PARTIAL, str(placement.reduce_op)
    raise ValueError(f"placement {placement!r} is none that is kept")
