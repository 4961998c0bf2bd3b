"""The logical state of live objects, without a word to another rank: from DTensor's specs, from DDP, from rules.

    a DTensor                          by its placements (FSDP2's own in the order in which FSDP2 cuts)
    a parameter that a rule names      by the rule, over a named mesh
    a parameter inside DDP             the same on all ranks of its group
    the only rank's                    whole
    any other plain tensor, a buffer   the rank's own
    one that an optimizer alone has    the same on all ranks, which is proved when it is read (masters in float32)

Optimizer state goes with its parameter, under the parameter's name, as do tied weights under their first name. A
parameter of no module is named by its number in the optimizer: ``optimizer.params.3``. Wrappers leave no trace in
names, so that a state of DDP can be read by FSDP2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import get_world_size
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as DShard
from torch.distributed.tensor.placement_types import Placement as DPlacement
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel

from ftrain.ddp import kept_equal
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.placements import (
    Cut,
    Located,
    Placement,
    Scope,
    Shard,
    Spread,
    locate,
    right_to_left,
    sharded,
    uncut,
)
from ftrain.logical.rules import NamedMesh, Rule, Rules
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.sharded import local_of
from ftrain.state import TensorKey, has_elements, parameters_of, tensor_key

TRANSPARENT = ("_orig_mod", "_checkpoint_wrapped_module")
"""Under these names torch.compile and activation checkpointing keep the module that they wrap."""


_NO_RULE = Rule()


class Live(NamedTuple):
    """A rank's state, and the local tensor of each description in it."""

    state: RankState
    tensors: tuple[Tensor, ...]
    by_rule: frozenset[str] = frozenset()
    """Names of the plain tensors that are spread by a rule."""


def describe(
    objects: Mapping[str, Any],
    rank: int,
    world_size: int,
    rules: Rules | None = None,
    mesh: NamedMesh | None = None,
    ddps: Iterable[DistributedDataParallel] = (),
) -> Live:
    """Describe modules, optimizers and single tensors, by the names that they are tracked under.

    Modules first: optimizer state is named by their parameters. ``mesh``: of the dimensions that rules speak of; by
    default one, ``world``. ``ddps``: beside those among the objects, where only what they wrap is tracked. FSDP2
    modules that an evaluation left gathered are sharded again (FACTS 7).
    Raises LayoutInvalid for a tensor that cannot be described, with what to write.
    """
    description = _Description(world_size, rules, mesh or NamedMesh(("world",), (world_size,), (rank,)))
    for ddp in ddps:
        description.note_ddp(ddp)
    for name, tracked in objects.items():
        if isinstance(tracked, nn.Module):
            description.add_module(name, tracked)
    for name, tracked in objects.items():
        if isinstance(tracked, torch.optim.Optimizer):
            description.add_optimizer(name, tracked)
        elif isinstance(tracked, Tensor):
            description.add_tensor(name, tracked)
    state = RankState(rank, tuple(description.found), description.aliases, description.parameters)
    return Live(state, tuple(description.tensors), frozenset(description.by_rule))


def named_mesh(mesh: DeviceMesh) -> NamedMesh:
    """A device mesh in numbers. Raises LayoutInvalid if it has no names, or this rank no place in it."""
    coordinate = mesh.get_coordinate() if isinstance(mesh, DeviceMesh) else None
    if coordinate is None or mesh.mesh_dim_names is None:
        raise LayoutInvalid("a mesh for layout rules is a DeviceMesh that has mesh_dim_names, and this rank in it")
    return NamedMesh(tuple(mesh.mesh_dim_names), tuple(mesh.shape), tuple(coordinate))


class _Placed(NamedTuple):
    """How a tensor is spread, and what this rank has of it."""

    located: Located
    cuts: list[Cut]

    def whole(self, shape: tuple[int, ...]) -> Located:
        """Of a tensor of another shape that is whole on each of the same ranks."""
        located = locate(shape, uncut(self.cuts))
        if not self.located.copies:
            located = located._replace(copies=0)
        return located._replace(scope=Scope.OWN) if self.located.scope is Scope.OWN else located


class _Description:
    """A rank's tensors as they are found."""

    def __init__(self, world_size: int, rules: Rules | None, mesh: NamedMesh) -> None:
        self._world_size, self._rules, self._mesh = world_size, rules or Rules({}), mesh
        self.found: list[LogicalTensor] = []
        self.tensors: list[Tensor] = []
        self.aliases: dict[str, str] = {}
        self.parameters: dict[str, tuple[str, ...]] = {}
        self.by_rule: set[str] = set()
        self._known: dict[int, tuple[str, _Placed]] = {}
        self._alike: dict[object, _Placed] = {}
        """Where DTensors of the same kind are."""
        self._together: dict[int, int] = {}
        """On how many ranks DDP keeps a parameter the same."""
        self._by_fsdp: set[object] = set()
        """What FSDP2's parameters look like."""

    def note_ddp(self, ddp: DistributedDataParallel) -> None:
        group: Any = ddp.process_group
        self._together |= {id(parameter): get_world_size(group) for parameter in kept_equal(ddp)}

    def add_module(self, name: str, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
            elif isinstance(part, DistributedDataParallel):
                self.note_ddp(part)
            elif isinstance(part, FullyShardedDataParallel):
                raise LayoutInvalid(f"{name} is sharded by FSDP1, whose parts have no names: use FSDP2 (fully_shard)")
        self._walk(name, module, by_fsdp=False)

    def _walk(self, prefix: str, module: nn.Module, by_fsdp: bool) -> None:
        by_fsdp = by_fsdp or isinstance(module, FSDPModule)
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                self._add(f"{prefix}.{leaf}", parameter, by_fsdp)
                if by_fsdp and isinstance(parameter, DTensor):
                    self._by_fsdp.add(_form(parameter))
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                self._add(f"{prefix}.{leaf}", buffer, by_fsdp)
        is_ddp = isinstance(module, DistributedDataParallel)
        for leaf, child in module._modules.items():
            if child is not None:
                is_unseen = leaf in TRANSPARENT or (is_ddp and leaf == "module")
                self._walk(prefix if is_unseen else f"{prefix}.{leaf}", child, by_fsdp)

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self._add(name, tensor, by_fsdp=False)

    def add_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        also: dict[str, list[str]] = {}
        for alias, first in self.aliases.items():
            also.setdefault(first, []).append(alias)
        parameters = parameters_of(optimizer)
        seen = {} if all(id(each) in self._known for each in parameters) else self._by_memory()
        for index, parameter in enumerate(parameters):
            if (known := seen.get(tensor_key(local_of(parameter)))) is not None:
                self._known.setdefault(id(parameter), known)
            if id(parameter) not in self._known:
                self._add_alone(f"{name}.params.{index}", parameter)
            owner, placed = self._known[id(parameter)]
            for key, value in optimizer.state.get(parameter, {}).items():
                full = f"{name}.{owner}.{key}"
                if isinstance(value, Tensor):
                    self._put(full, value, self._beside(full, value, parameter, placed), like=owner)
                    self.aliases |= {f"{name}.{alias}.{key}": full for alias in also.get(owner, ())}
                elif sharded(placed.cuts) and has_elements(value):
                    raise LayoutInvalid(
                        f"{full} has tensors within it, and its parameter is sharded: no layout says how to cut these; "
                        "make them values of the parameter's state themselves"
                    )
        self.parameters[name] = tuple(self._known[id(parameter)][0] for parameter in parameters)

    def _add_alone(self, name: str, parameter: Tensor) -> None:
        """A parameter that no module has: a master.

        What a clone of FSDP2's has is cut as that is. Whether ranks have the same of a plain one only its bytes tell:
        they are compared when it is read, unless a rule says what it is.
        """
        placed = self._place(name, parameter, isinstance(parameter, DTensor) and _form(parameter) in self._by_fsdp)
        if placed.located.scope is Scope.OWN and name not in self.by_rule:
            placed = placed._replace(located=placed.located._replace(copies=0, scope=Scope.SAME))
        self._known[id(parameter)] = name, placed
        self._put(name, parameter, placed.located)

    def _by_memory(self) -> dict[TensorKey, tuple[str, _Placed]]:
        """What is known: an optimizer may have another object of the same memory (``nn.Parameter(p.data)``)."""
        placed = dict(self._known.values())
        pairs = zip(self.found, self.tensors, strict=True)
        return {
            tensor_key(local): (tensor.name, placed[tensor.name])
            for tensor, local in pairs
            if tensor.name in placed and local.numel()
        }

    def _beside(self, name: str, value: Tensor, parameter: Tensor, placed: _Placed) -> Located:
        """How an optimizer's state is spread: as its parameter if it has its shape; else whole, if it is a scalar."""
        if value.dim() and local_of(value).shape == local_of(parameter).shape:
            return placed.located
        if isinstance(value, DTensor):
            return self._place(name, value, by_fsdp=False).located
        if value.numel() == 1 or not sharded(placed.cuts):
            return placed.whole(tuple(value.shape))
        if (by_rule := self._by_rule(name, value)) is not None:
            return by_rule.located
        raise LayoutInvalid(
            f"{name} has shape {tuple(value.shape)}, its sharded parameter another: give it a layout rule"
        )

    def _add(self, name: str, tensor: Tensor, by_fsdp: bool) -> None:
        if id(tensor) in self._known:
            self.aliases[name] = self._known[id(tensor)][0]
            return
        placed = self._place(name, tensor, by_fsdp)
        self._known[id(tensor)] = name, placed
        self._put(name, tensor, placed.located)

    def _place(self, name: str, tensor: Tensor, by_fsdp: bool) -> _Placed:
        if isinstance(tensor, DTensor):
            found = self._rules.match(name)
            placed = self._place_dtensor(name, tensor, by_fsdp, found[1] if found else _NO_RULE)
            if found or tensor.device_mesh.size() == self._world_size:
                return placed
            # Ranks beside its mesh hold the same, or a stage of their own: nothing here tells.
            return placed._replace(located=placed.located._replace(copies=0))
        if (by_rule := self._by_rule(name, tensor)) is not None:
            return by_rule
        ranks = self._together.get(id(tensor), 0)
        cuts = [Cut(Spread.REPLICATE, ranks, 0)] if ranks else []
        located = locate(tensor.shape, cuts)
        is_same = ranks > 0 or (self._world_size == 1 and isinstance(tensor, nn.Parameter))
        return _Placed(located if is_same else located._replace(scope=Scope.OWN), cuts)

    def _place_dtensor(self, name: str, tensor: DTensor, by_fsdp: bool, rule: Rule) -> _Placed:
        """As `_cut_dtensor`; layers are alike, and worked out once."""
        key = _form(tensor), by_fsdp, id(rule)
        if key not in self._alike:
            self._alike[key] = _cut_dtensor(name, tensor, by_fsdp, rule, self._mesh)
        placed = self._alike[key]
        if (made := tuple(axis.size for axis in placed.located.axes)) != tuple(tensor._local_tensor.shape):
            raise LayoutInvalid(
                f"{name}: its placements {tuple(tensor.placements)} make a local shape {made}, "
                f"it is {tuple(tensor._local_tensor.shape)}"
            )
        return placed

    def _by_rule(self, name: str, tensor: Tensor) -> _Placed | None:
        found, located = self._rules.match(name), self._rules.locate(name, tensor.shape, self._mesh)
        if found is None or located is None:
            return None
        self.by_rule.add(name)
        return _Placed(located, found[1].cuts(self._mesh))

    def _put(self, name: str, tensor: Tensor, located: Located, like: str = "") -> None:
        local = local_of(tensor)
        dtype = str(local.dtype).removeprefix("torch.")
        self.found.append(
            LogicalTensor(
                name, dtype, local.element_size(), located.shape, located.axes, tuple(local.stride()),
                located.copies, located.scope, like,
            )
        )  # fmt: skip
        self.tensors.append(local)


def _form(tensor: DTensor) -> object:
    """Two with the same are cut alike."""
    return tensor.shape, tensor.placements, tensor.device_mesh


def _cut_dtensor(name: str, tensor: DTensor, by_fsdp: bool, rule: Rule, mesh: NamedMesh) -> _Placed:
    """By its placements; a rule adds what these cannot know: padding, and mesh dimensions that are not the tensor's."""
    own = tensor.device_mesh
    coordinate = own.get_coordinate()
    if coordinate is None:
        raise LayoutInvalid(f"{name}: this rank is not of the tensor's mesh {tuple(own.mesh.shape)}")
    steps = zip(tensor.placements, own.shape, coordinate, strict=True)
    cuts = [Cut(_placement(name, placement), ranks, place) for placement, ranks, place in steps]
    if by_fsdp:
        cuts = right_to_left(cuts)
    named = own.mesh_dim_names
    cuts += [] if named is None else [mesh.cut(dim, spread) for dim, spread in rule.clauses if dim not in named]
    located = locate(tensor.shape, cuts, rule.trims)
    return _Placed(located, cuts)


def _placement(name: str, placement: DPlacement) -> Placement:
    if isinstance(placement, _StridedShard):
        return Shard(placement.dim, int(placement.split_factor))
    if isinstance(placement, DShard):
        return Shard(placement.dim)
    if isinstance(placement, Replicate):
        return Spread.REPLICATE
    raise LayoutInvalid(f"{name}: {placement!r} is a value that is still to be reduced: redistribute it first")
