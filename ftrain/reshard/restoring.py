"""A rank's tracked objects, from a snapshot of another world.

    modules      their tensors are filled in place, the local parts of DTensors too
    optimizers   state is made anew, as DTensors beside DTensors; by the names of parameters
    anything     what all old ranks agree on, or each one's own where a layout says ``per_rank``

Nothing refers to the arena afterwards (FACTS 7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from ftrain.errors import StateMismatch
from ftrain.layout import Kind, TensorSpec, fills
from ftrain.logical.growth import with_optimizer_state
from ftrain.logical.live import TRANSPARENT, Live
from ftrain.logical.state import LogicalTensor, RankState, contiguous_strides
from ftrain.memory import huge_tensors
from ftrain.reading import items_of
from ftrain.reshard.describer import Describer
from ftrain.reshard.origin import OldWorld
from ftrain.reshard.said import Said
from ftrain.reshard.tensors import TensorReader
from ftrain.reshard.values import (
    EXTRA,
    Kept,
    agreed,
    by_parameter,
    check_within,
    derived_rng,
    empty_group_settings,
    group_settings,
    holds,
    settings_of,
    sharded_outside,
)
from ftrain.restore import LARGE_BYTES
from ftrain.shards import Part
from ftrain.state import load_state

Made = dict[str, dict[str, Tensor]]
"""An optimizer's tensors, by parameter and key."""
_KERNELS = ("foreach", "fused")
"""Of a group's settings: how it is computed, which this world's layout decides (plain tensors beside DTensors want
neither), not what."""
_UNSEEN = (*TRANSPARENT, "module")


class Restoring:
    """One rank's way back. Says nothing to the other ranks, which do the same."""

    def __init__(self, old: OldWorld, describer: Describer, rank: int, world_size: int) -> None:
        self.old = old
        self._describer, self._rank = describer, rank
        self._reader = TensorReader(old, rank)
        self._refuse_gradients(world_size)

    @property
    def names(self) -> set[str]:
        """Of all objects in the snapshot, whichever of its ranks tracked them."""
        return {name for said in self.old.ranks for name in said.objects}

    def rng(self) -> dict[str, Any]:
        """The generators' states: this rank's own, if the old world had it."""
        ranks = self.old.ranks
        if self._rank < len(ranks):
            return ranks[self._rank].values("rng")
        return derived_rng(ranks[0].values("rng"), self._rank)

    def buckets(self) -> dict[int, dict[str, Any]]:
        """The layouts of DDP's buckets, by what they are of; the first rank's that has one."""
        found: dict[int, dict[str, Any]] = {}
        distinct: dict[bytes, Said] = {}
        for said in self.old.ranks:
            distinct.setdefault(said.encoded("buckets"), said)
        for said in distinct.values():
            for layout in said.values("buckets").values():
                found.setdefault(layout["parameters"], layout)
        return found

    def restore(self, objects: Mapping[str, Any], every: Mapping[str, Any]) -> None:
        """Put back the state of these objects; ``every``: with those that were tracked before.

        Raises StateMismatch, StateUnreadable, LayoutInvalid, and what reading raises.
        """
        if missing := sorted(set(objects) - self.names):
            raise StateMismatch(f"{missing[0]} is tracked, but the snapshot lacks it")
        live = self._describer.describe(every)
        known = {each for state in self.old.world.states for names in state.parameters.values() for each in names}
        for name in live.state.parameters.keys() & objects.keys():
            if any(each.startswith(f"{name}.params.") and each not in known for each in live.state.parameters[name]):
                raise StateMismatch(f"{name} has parameters of no module: ctx.track their module before it, or with it")
        optimizers = {name: each for name, each in objects.items() if isinstance(each, torch.optim.Optimizer)}
        made = self._fill(live, objects, optimizers)
        for name, tracked in objects.items():
            if isinstance(tracked, nn.Module):
                self._load_extra(name, tracked)
            elif name in optimizers:
                self._load_optimizer(name, tracked, live.state, made[name])
            else:
                load_state(name, tracked, {"state": self._agreed(name, self._states(self._holders(name), name))})

    # Tensors.

    def _fill(
        self, live: Live, objects: Mapping[str, Any], optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> dict[str, Made]:
        """Fill what modules have, and make what optimizers need."""
        state, memory = live.state, dict(zip((each.name for each in live.state.tensors), live.tensors, strict=True))
        there = tuple(tensor for tensor in state.tensors if not tensor.like)
        wanted = [tensor for tensor in there if _owner(tensor.name, objects) is not None]
        grown = with_optimizer_state(RankState(state.rank, there, state.aliases), self.old.world)
        made: dict[str, Made] = {name: defaultdict(dict) for name in optimizers}
        news, places = [], []
        parameters = {name: dict(zip(state.parameters[name], _parameters(each), strict=True))
                      for name, each in optimizers.items()}  # fmt: skip
        for tensor in grown.tensors:
            name = _owner(tensor.name, optimizers) if tensor.like else None
            if name is None:
                continue
            if tensor.like not in parameters[name]:
                raise StateMismatch(f"the snapshot's {name} has state of {tensor.like}, here it has no such parameter")
            parameter = parameters[name][tensor.like]
            news.append((name, tensor, parameter))
        for (name, tensor, parameter), place in zip(news, _empty([each[1:] for each in news]), strict=True):
            made[name][tensor.like][tensor.name.removeprefix(f"{name}.{tensor.like}.")] = _beside(parameter, place)
            places.append(place)
        tensors = [*wanted, *(tensor for _, tensor, _ in news)]
        self._reader.read(tensors, [*(memory[tensor.name] for tensor in wanted), *places], state.aliases)
        return made

    # What is no tensor.

    def _holders(self, name: str) -> list[int]:
        """The old ranks that tracked an object."""
        return [rank for rank, said in enumerate(self.old.ranks) if name in said.objects]

    def _distinct(self, name: str) -> list[int]:
        """Of those that said the same of an object and of their tensors' names the first."""
        first: dict[object, int] = {}
        for rank in self._holders(name):
            said = self.old.ranks[rank]
            state = said.state
            names = tuple(state.by_name), tuple(state.aliases), state.parameters.get(name, ())
            first.setdefault((said.objects[name], names), rank)
        return list(first.values())

    def _states(self, ranks: Iterable[int], name: str) -> dict[int, Any]:
        """By old rank, the state of an object."""
        said = self.old.ranks
        return {rank: said[rank].value(said[rank].state_of(name)) for rank in ranks}

    def _agreed(self, name: str, values: Mapping[int, Any]) -> Any:
        """What this rank gets of what old ranks have."""
        rule = None if self._describer.rules is None else self._describer.rules.match(name)
        if any(holds(value, Part) for value in values.values()):
            raise sharded_outside(name)
        chosen = agreed(name, values, rule is not None and rule[1].per_rank, self._rank)
        return self.old.with_tensors(chosen, values[chosen])

    def _load_extra(self, name: str, module: nn.Module) -> None:
        """What modules keep by ``get_extra_state``. Anything else in their state must be one of their tensors."""
        extra: dict[str, dict[int, Any]] = defaultdict(dict)
        for rank in self._distinct(name):
            logical = self.old.world.states[rank]
            tensors = {_path(each) for each in chain(logical.by_name, logical.aliases)}
            for key in items_of(self.old.ranks[rank].state_of(name)):
                path = _path(f"{name}.{key}")
                if path.endswith(f".{EXTRA}"):
                    extra[path] = {}
                elif path not in tensors:
                    raise StateMismatch(f"{path} is no tensor of the module: another world cannot take it over")
        for rank in self._holders(name) if extra else ():
            for key, value in items_of(self.old.ranks[rank].state_of(name)).items():
                if (path := _path(f"{name}.{key}")) in extra:
                    extra[path][rank] = self.old.ranks[rank].value(value)
        for prefix, part in module.named_modules():
            if type(part).get_extra_state is not nn.Module.get_extra_state:
                path = _path(f"{name}.{prefix}.{EXTRA}".replace("..", "."))
                if path not in extra:
                    raise StateMismatch(f"the snapshot lacks {path}")
                part.set_extra_state(self._agreed(path, extra[path]))

    def _load_optimizer(self, name: str, optimizer: torch.optim.Optimizer, live: RankState, made: Made) -> None:
        worlds = self.old.world.states
        kept = self._kept_by(name, self._distinct(name))
        groups_kept = {id(one.settings): one.settings for one in kept.values()}.values()
        if any(holds(each, Tensor) for each in (*groups_kept, *(one.values for one in kept.values()))):
            kept = self._kept_by(name, self._holders(name))  # equal bytes do not say of what shape tensors are
        for aliases in (*(world.aliases for world in worlds), live.aliases):  # tied weights have one of several names
            for alias, first in aliases.items():
                if (one := kept.get(first) or kept.get(alias)) is not None:
                    kept |= {alias: kept.get(alias, one), first: kept.get(first, one)}
        check_within(name, kept, (*worlds, live))
        names = iter(enumerate(live.parameters[name]))
        groups: list[dict[str, Any]] = []
        states: dict[int, dict[str, Any]] = {}
        for number, group in enumerate(optimizer.param_groups):
            inside = dict(islice(names, len(group["params"])))
            taken = self._settings(name, number, list(inside.values()), kept)
            own = {key: group[key] for key in _KERNELS if key in group}
            before = {} if inside else settings_of(group)
            groups.append({**before, **taken, **own, "params": list(inside)})
            for index, parameter in inside.items():
                if values := {**made[parameter], **self._of(kept[parameter], kept[parameter].values)}:
                    states[index] = values
        load_state(name, optimizer, {"state": {"state": states, "param_groups": groups}})

    def _settings(self, name: str, number: int, parameters: Sequence[str], kept: Mapping[str, Kept]) -> dict[str, Any]:
        """Of a new group. One without parameters has some all the same: a scheduler goes on from them."""
        found = group_settings(name, number, parameters, kept)
        if found is None:
            found = empty_group_settings(number, self._states(self._distinct(name), name))
        return {} if found is None else self._of(found, found.settings)

    def _kept_by(self, name: str, ranks: Iterable[int]) -> dict[str, Kept]:
        worlds = self.old.world.states
        states = self._states(ranks, name).items()
        return by_parameter(name, [(rank, state, worlds[rank].parameters.get(name, ())) for rank, state in states])

    def _of(self, kept: Kept | None, values: dict[str, Any]) -> dict[str, Any]:
        return {} if kept is None else dict(self.old.with_tensors(kept.rank, values))

    def _refuse_gradients(self, world_size: int) -> None:
        """Gradients that were accumulated over commits belong to the old world's batches; zeros are none."""
        for rank in range(self._rank, self.old.size, world_size):
            for index, gradient in self.old.ranks[rank].values("gradients").items():
                stand_in = gradient.local if isinstance(gradient, Part) else gradient
                if not isinstance(stand_in, Tensor) or self.old.with_tensors(rank, [stand_in])[0].any():
                    raise StateMismatch(
                        f"rank {rank} has accumulated a gradient (of parameter {index}) that no step has used yet: "
                        "another world cannot take it over; commit where gradients are spent"
                    )


def _owner(name: str, objects: Mapping[str, Any]) -> str | None:
    """The tracked object that a logical tensor is of."""
    return max((each for each in objects if name.startswith(f"{each}.")), key=len, default=None)


def _path(name: str) -> str:
    """Without the names that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _UNSEEN)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _empty(tensors: Sequence[tuple[LogicalTensor, Tensor]]) -> list[Tensor]:
    """New local tensors, given each with the parameter that it goes with; large ones in huge pages (memory.py)."""
    specs = [_spec(tensor, parameter) for tensor, parameter in tensors]
    large = [n for n, spec in enumerate(specs) if spec.size_bytes >= LARGE_BYTES and spec.device == "cpu"]
    huge = dict(zip(large, huge_tensors([specs[number] for number in large]), strict=True))
    return [
        huge[number] if number in huge else spec.empty().to(parameter.device if spec.shape else "cpu")
        for number, ((_, parameter), spec) in enumerate(zip(tensors, specs, strict=True))
    ]


def _spec(tensor: LogicalTensor, parameter: Tensor) -> TensorSpec:
    shape = tensor.local_shape
    strides = tensor.strides if fills(shape, tensor.strides) else contiguous_strides(shape)
    return TensorSpec(tensor.name, tensor.dtype, shape, strides, parameter.device.type, Kind(), 0, tensor.local_bytes)


def _beside(parameter: Tensor, local: Tensor) -> Tensor:
    """An optimizer's state as it is for such a parameter."""
    if not isinstance(parameter, DTensor) or not local.dim() or local.shape != parameter._local_tensor.shape:
        return local
    spec = parameter._spec
    meta = spec.tensor_meta
    if meta is not None and meta.dtype != local.dtype:  # float32 beside bfloat16
        spec = DTensorSpec(spec.mesh, spec.placements, tensor_meta=meta._replace(dtype=local.dtype))
    made: Any = DTensor  # not ``from_local``, which goes by way of autograd
    return made(local, spec, requires_grad=False)  # type: ignore[no-any-return]
