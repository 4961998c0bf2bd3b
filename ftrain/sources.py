"""How tracked objects give their state, step after step, without being walked anew.

A *source* stands for one tracked object. It lists the tensors that are the object's own (parameters, buffers,
optimizer state), and packs the rest of its state. What it looked like when it was read is its *fingerprint*: the
very objects in its lists and dictionaries, compared in one call (looks.py). While they are the same, and the tensors'
memory lies where it did and is read as it was (that is for the plan to say, of all sources at once), the packed state
of a module or an optimizer is used again as it is (FACTS 7: a plan can be cached).

A parameter that only an optimizer has (a master in float32 of a model in bfloat16) is state of the optimizer's, though
its ``state_dict`` leaves it out: which ones these are is found once per plan (`Source.adopt`).

An object that makes its state in a way of its own (a ``state_dict`` overridden, hooks, any class of the user's) is
asked each time. Tensors that it hands out and that nobody else lists are copied each time, before commit returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ftrain.encoding import DICT, LIST, Packer
from ftrain.looks import Containers
from ftrain.sharded import Gathering, is_state_hook, local_of
from ftrain.state import TensorKey, parameters_of, state_of, tensor_key

_CELLS = ("_parameters", "_buffers", "_modules", "_state_dict_hooks", "_state_dict_pre_hooks")
_HOOKS = attrgetter("_optimizer_state_dict_pre_hooks", "_optimizer_state_dict_post_hooks")
_SIMPLE = (type(None), bool, int, float, str)


class Source:
    """One tracked object, asked for its state each time: the rule for what is neither module nor optimizer."""

    def __init__(self, name: str, tracked: Any) -> None:
        self.name = name
        self.tracked = tracked
        self.own: list[Tensor] = []
        """The tensors that are this object's own and have memory of their own, as of `read`; of a DTensor the local."""

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """(path, tensor, parameter whose optimizer state it is) of what this object calls its own."""
        return iter(())

    def read(self) -> None:
        """Take the fingerprint."""

    def is_same(self) -> bool:
        """The fingerprint is as it was: the same tensors, which may have moved."""
        return True

    def is_settled(self) -> bool:
        """All that is state lies where it is looked for."""
        return True

    def asks(self) -> bool:
        """To pack it runs code that is not torch's, which may do anything."""
        return True

    def pack(self, packer: Packer) -> Any:
        """The object's state, as `Packer.pack` gives it for `state_of`."""
        return packer.pack(state_of(self.tracked))

    def adopt(self, given: set[TensorKey]) -> None:
        """From now on pack also what this object uses, and is not ``given`` by others, to which it is added."""

    def forget(self) -> None:
        """What was packed may refer to another plan's tensors."""


def _dense(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among them that have memory of their own; others are refused when they are packed."""
    return [v for v in values if isinstance(v, Tensor) and v.layout is torch.strided and not v.is_meta]


class ModuleSource(Source):
    """A module with all its submodules. FSDP2's show their sharded parameters whenever they are looked at."""

    tracked: nn.Module

    def read(self) -> None:
        """Take the fingerprint."""
        modules = list(self.tracked.modules())
        self._gathering = Gathering(modules)
        self._gathering.reshard()
        self._paths: dict[int, str] = {}
        for prefix, module in self.tracked.named_modules():
            for leaf, tensor in chain(module._parameters.items(), module._buffers.items()):
                if tensor is not None:
                    self._paths.setdefault(id(tensor), f"{prefix}.{leaf}".removeprefix("."))
        cells = [vars(module)[key] for module in modules for key in _CELLS]
        self._contents = Containers(members=map(vars, modules), keys=_CELLS, dictionaries=cells)
        self._listed = _dense(chain.from_iterable(cell.values() for cell in cells))
        self.own = list(map(local_of, self._listed))
        self._plain = _is_plain(modules)
        self._packed: msgspec.Raw | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """See `Source`."""
        for tensor in self._listed:
            yield f"{self.name}.{self._paths[id(tensor)]}", tensor, None

    def is_same(self) -> bool:
        """See `Source`."""
        self._gathering.reshard()
        return self._contents.are_same()

    def is_settled(self) -> bool:
        """See `Source`."""
        return self._gathering.is_settled()

    def asks(self) -> bool:
        """See `Source`."""
        return not self._plain

    def pack(self, packer: Packer) -> Any:
        """See `Source`."""
        if not self._plain:
            return super().pack(packer)
        if self._packed is None:
            self._packed = msgspec.Raw(msgspec.msgpack.encode(super().pack(packer)))
        return self._packed

    def forget(self) -> None:
        """See `Source`."""
        self._packed = None


class OptimizerSource(Source):
    """A ``torch.optim.Optimizer``: settings are packed each time, state once."""

    tracked: Optimizer

    def read(self) -> None:
        """Take the fingerprint."""
        state = self.tracked.state
        self._structure = self._read_structure()
        self._params = parameters_of(self.tracked)
        self._adopted: dict[int, Tensor] = {}
        self._states = [entry if isinstance(entry, dict) else {} for entry in map(state.get, self._params)]
        self._contents = Containers(dictionaries=self._states)
        # Parameters are checked by the module whose state they are, or are tensors of the plan.
        self.own = list(map(local_of, _dense(self._contents.items[1::2])))
        self._keyed_by_parameters = len(state) == sum(parameter in state for parameter in self._params)
        self._packed: msgspec.Raw | None = None
        self._packed_params: list[msgspec.Raw] = []
        self._packed_adopted: msgspec.Raw | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """See `Source`."""
        for index, (parameter, state) in enumerate(zip(self._params, self._states, strict=True)):
            yield f"{self.name}.params.{index}", parameter, parameter
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{self.name}.state[{index}].{key}", value, parameter

    def is_same(self) -> bool:
        """See `Source`."""
        return self._is_structure_same() and (self._contents.are_same() or self._only_numbers_changed())

    def _is_structure_same(self) -> bool:
        """Whether groups have the same parameters, and parameters the same dictionaries."""
        optimizer = self.tracked
        if optimizer.state is self._state and optimizer.param_groups is self._groups and self._structure.are_same():
            return True
        before, now = self._structure, self._read_structure()  # an optimizer may make both anew when it is asked
        self._structure = now
        return now.held_as(before)

    def _read_structure(self) -> Containers:
        self._state, self._groups = self.tracked.state, self.tracked.param_groups
        lists = [self._groups, *(group["params"] for group in self._groups)]
        return Containers(lists=lists, dictionaries=[self._state], members=self._groups, keys=["params"])

    def _only_numbers_changed(self) -> bool:
        """Whether the tensors are the same ones; what else there is, is packed anew."""
        before, now = self._contents.items, (contents := Containers(dictionaries=self._states)).items
        if now[::2] != before[::2]:
            return False
        pairs = zip(now[1::2], before[1::2], strict=True)
        if any(new is not old for new, old in pairs if isinstance(new, Tensor) or isinstance(old, Tensor)):
            return False
        self._contents, self._packed = contents, None
        return True

    def asks(self) -> bool:
        """See `Source`."""
        return not self._is_plain()

    def pack(self, packer: Packer) -> Any:
        """See `Source`."""
        packed = self._pack_state(packer)
        if not self._adopted:
            return packed
        if self._packed_adopted is None:
            with packer.inside("params"):
                self._packed_adopted = msgspec.Raw(msgspec.msgpack.encode(packer.pack(self._adopted)))
        return [*packed, "params", self._packed_adopted]

    def _pack_state(self, packer: Packer) -> Any:
        """What its ``state_dict`` gives."""
        optimizer = self.tracked
        if not self._is_plain():
            return super().pack(packer)
        if self._packed is None:
            whole = optimizer.state_dict()
            simple = all(isinstance(value, Tensor) or type(value) in _SIMPLE for value in self._contents.items[1::2])
            packed = msgspec.Raw(msgspec.msgpack.encode(packer.pack(whole["state"])))
            self._packed_params = [
                msgspec.Raw(msgspec.msgpack.encode(packer.pack(group["params"]))) for group in whole["param_groups"]
            ]
            if simple:  # lists of tensors and the like may change inside
                self._packed = packed
        else:
            packed = self._packed
        groups = [
            [*packer.pack({key: value for key, value in group.items() if key != "params"}), "params", params]
            for group, params in zip(optimizer.param_groups, self._packed_params, strict=True)
        ]
        return [DICT, "state", [DICT, "state", packed, "param_groups", [LIST, *groups]]]

    def adopt(self, given: set[TensorKey]) -> None:
        """See `Source`."""
        keys = [tensor_key(local_of(parameter)) for parameter in self._params]
        self._adopted = {number: self._params[number] for number, key in enumerate(keys) if key not in given}
        given.update(keys)

    def forget(self) -> None:
        """See `Source`."""
        self._packed = self._packed_adopted = None

    def _is_plain(self) -> bool:
        optimizer = self.tracked
        return (
            type(optimizer).state_dict is Optimizer.state_dict
            and "state_dict" not in vars(optimizer)
            and not any(_HOOKS(optimizer))
            and self._keyed_by_parameters
        )


def source_of(name: str, tracked: Any) -> Source:
    """The source that stands for a tracked object, with its fingerprint taken."""
    kinds: Iterable[tuple[type, Callable[[str, Any], Source]]] = (
        (nn.Module, ModuleSource),
        (Optimizer, OptimizerSource),
    )
    source = next((make for kind, make in kinds if isinstance(tracked, kind)), Source)(name, tracked)
    source.read()
    return source


def _is_plain(modules: list[nn.Module]) -> bool:
    """Nobody has a say in what these modules' ``state_dict`` gives."""
    return all(
        type(module).state_dict is nn.Module.state_dict
        and type(module)._save_to_state_dict is nn.Module._save_to_state_dict
        and type(module).get_extra_state is nn.Module.get_extra_state
        and "state_dict" not in vars(module)
        and not module._state_dict_hooks
        and all(map(is_state_hook, module._state_dict_pre_hooks.values()))
        for module in modules
    )
