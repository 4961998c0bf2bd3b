"""What makes up a rank's state: the tracked objects, as one tree of values and a list of tensors.

Anything with ``state_dict`` and ``load_state_dict`` can be tracked. The tree is packed by `ftrain.encoding`, which
takes the tensors out; tied tensors are listed once. Modules also give the buffers that their ``state_dict`` leaves
out (``persistent=False``): they are state all the same. So are the parameters that an optimizer alone has (masters in
float32): they go with it, by their numbers. A DTensor's bytes are those of its local tensor.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from ftrain.encoding import Packer
from ftrain.errors import NotTrackable, StateMismatch
from ftrain.sharded import Gathering, is_sharded, joined, leaves, local_of, spec_of
from ftrain.shards import Part

TensorKey = tuple[int, torch.dtype, torch.Size, tuple[int, ...], torch.device, bool, bool]
"""Tells whether two tensors are the same memory, seen the same way."""


def tensor_key(tensor: torch.Tensor) -> TensorKey:
    """The tensor's address, type, shape, strides and device, and whether it is conjugated or negated lazily."""
    form = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
    return (*form, tensor.is_conj(), tensor.is_neg())


@dataclass
class Collected:
    """A tree, packed, and the tensors taken out of it."""

    tree: Any = None
    tensors: list[torch.Tensor] = field(default_factory=list)
    keys: list[TensorKey] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Path of each tensor; only where they were asked for."""


def collect(tree: Mapping[str, Any], *, names: bool = False) -> Collected:
    """Pack ``tree``. Raises NotTrackable naming the path of a value or tensor that cannot be kept."""
    result = Collected()
    seen: dict[TensorKey, int] = {}

    def add(tensor: torch.Tensor, path: Callable[[], str]) -> int:
        refuse_special(tensor, path)
        key = tensor_key(tensor)
        index = seen.get(key)
        if index is None:
            index = seen[key] = len(result.tensors)
            result.tensors.append(tensor)
            result.keys.append(key)
            if names:
                result.names.append(path())
        return index

    result.tree = Packer(add).pack(tree)
    return result


def check_trackable(name: str, tracked: object) -> None:
    """Raises NotTrackable if the object cannot hand out and take back its state."""
    if any(kind.__qualname__ == "ZeroRedundancyOptimizer" for kind in type(tracked).__mro__):
        raise NotTrackable(
            name,
            "ZeroRedundancyOptimizer",
            "its state_dict() is what was last consolidated, on one rank: shard by FSDP2 (fully_shard) instead",
        )
    for method in ("state_dict", "load_state_dict"):
        if not callable(getattr(tracked, method, None)):
            kind = f"{type(tracked).__module__}.{type(tracked).__qualname__}".removeprefix("builtins.")
            raise NotTrackable(name, kind, f"it has no {method}()")


def state_of(tracked: Any) -> dict[str, Any]:
    """The state of one tracked object."""
    state: dict[str, Any] = {"state": tracked.state_dict()}
    if isinstance(tracked, nn.Module):
        state["buffers"] = {path: owner._buffers[name] for path, owner, name in _transient_buffers(tracked)}
    return state


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors into which the module's ``load_state_dict`` copies, by their names in `state_of`.

    None of a module that loads in a way of its own.
    """
    own: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules():
        if not _loads_plainly(part):
            return {}
        for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                own[f"{prefix}.{leaf}".removeprefix(".")] = tensor
    return own


def _loads_plainly(module: nn.Module) -> bool:
    """Nobody has a say in what ``load_state_dict`` copies into which tensor of this one module."""
    kind, hooks = type(module), module._load_state_dict_pre_hooks.values()
    return (
        kind.load_state_dict is nn.Module.load_state_dict
        and (kind._load_from_state_dict is nn.Module._load_from_state_dict or kind.__module__.startswith("torch.nn."))
        # torch's own hooks rename what older versions have saved.
        and all(str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks)
    )


@torch.no_grad()
def load_state(name: str, tracked: Any, state: dict[str, Any], others: Iterable[Any] = ()) -> None:
    """Put back what a source has packed (sources.py), as it came out of a snapshot. The tensors may become the
    object's own: give it copies (FACTS 7). DTensors go onto the meshes of this object's, or of ``others``.

    Raises StateMismatch if the object does not take it.
    """
    _check_shards(name, tracked, state)
    alone = dict(state.get("params", {}))
    state = joined(state, [tracked, *others])
    own = own_tensors(tracked) if isinstance(tracked, nn.Module) else {}
    _fill_expanded(own, state["state"])
    _warn_of_conversion(name, own, state["state"])
    try:
        with _writing(own.values()):
            tracked.load_state_dict(state["state"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise StateMismatch(f"{name}: the snapshot does not fit this object: {error}") from error
    if isinstance(tracked, nn.Module):
        _load_buffers(name, tracked, state["buffers"])
    if isinstance(tracked, torch.optim.Optimizer):
        _keep_kinds(tracked, state["state"])
        _load_parameters(name, tracked, alone)


def check_owners(objects: Mapping[str, Any], saved: Mapping[str, dict[str, Any]]) -> None:
    """Raises StateMismatch if a parameter whose values went with its optimizer is one that a module has put back."""
    modules = [(name, each) for name, each in objects.items() if isinstance(each, nn.Module) and name in saved]
    given = {
        id(parameter): f"{name}.{path}"
        for name, module in modules
        for path, parameter in module.named_parameters(remove_duplicate=False)
        if path in saved[name]["state"]
    }
    for name, tracked in objects.items():
        alone = saved[name].get("params", {}) if isinstance(tracked, torch.optim.Optimizer) and name in saved else {}
        for number, parameter in enumerate(parameters_of(tracked)) if alone else ():
            if number in alone and id(parameter) in given:
                raise StateMismatch(
                    f"{name}.params.{number} was the optimizer's alone when it was captured, and is "
                    f"{given[id(parameter)]} here: what the script had changed about its model it must change again "
                    "before ctx.track"
                )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """An optimizer's parameters, by their numbers."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def unique_parameters(objects: Mapping[str, Any]) -> list[nn.Parameter]:
    """The parameters of all tracked modules and optimizers, each once, in an order that is the same on all ranks.

    FSDP2 modules that are left gathered are sharded again: their parameters are others meanwhile.
    """
    found: dict[int, nn.Parameter] = {}
    for tracked in objects.values():
        if isinstance(tracked, nn.Module):
            Gathering(tracked.modules()).reshard()
            found.update((id(parameter), parameter) for parameter in tracked.parameters())
    # Last: one that a script has replaced in its module, and forgotten here, must not move the others.
    for tracked in objects.values():
        if isinstance(tracked, torch.optim.Optimizer):
            found.update((id(parameter), parameter) for parameter in parameters_of(tracked))
    return list(found.values())


_PLAIN_TENSORS = frozenset({torch.Tensor, nn.Parameter})


def refuse_special(tensor: torch.Tensor, path: Callable[[], str]) -> None:
    """Raises NotTrackable for a tensor that has no dense bytes of its own."""
    if type(tensor) not in _PLAIN_TENSORS or tensor.layout is not torch.strided or tensor.is_meta:
        _refuse(tensor, path())


def _refuse(tensor: torch.Tensor, path: str) -> None:
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise NotTrackable(path, kind, "a lazy module has no parameters yet: run one forward before ctx.track")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
        what = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else str(tensor.layout)
        raise NotTrackable(path, kind, f"only dense tensors with bytes of their own are kept, this one is {what}")
    if hasattr(tensor, "__tensor_flatten__"):
        raise NotTrackable(path, kind, "tensor subclasses that wrap other tensors are not kept")


def _transient_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    for prefix, owner in module.named_modules():
        for name in sorted(owner._non_persistent_buffers_set):
            if owner._buffers.get(name) is not None:
                yield f"{prefix}.{name}".removeprefix("."), owner, name


def _fill_expanded(own: Mapping[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Tensors made by ``expand`` repeat their elements, and ``load_state_dict`` refuses to write into these."""
    for path, tensor in own.items():
        saved = state.get(path)
        if _is_expanded(tensor) and isinstance(saved, torch.Tensor) and saved.shape == tensor.shape:
            fill_tensor(tensor, saved)
            state[path] = tensor  # loading finds that it is there already


def _warn_of_conversion(name: str, own: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Of the first tensor that has another dtype here: torch converts, and rounds, without a word."""
    for path, tensor in own.items():
        saved = state.get(path)
        if isinstance(saved, torch.Tensor) and saved.dtype != tensor.dtype:
            warnings.warn(
                f"{name}.{path} was captured as {saved.dtype} and is {tensor.dtype} here: what is restored is "
                "converted. If that is not meant, give it that dtype again before ctx.track",
                stacklevel=3,
            )
            return


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def fill_tensor(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """``tensor.copy_(value)``, but each element in memory once: an expanded tensor repeats some."""
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor, value = tensor.narrow(dimension, 0, 1), value.narrow(dimension, 0, 1)
    with _writing([tensor]):
        tensor.copy_(value)


def _writing(tensors: Iterable[torch.Tensor]) -> AbstractContextManager[object]:
    """Tensors that were made in inference mode (a cache that an evaluation filled) can be written to only there."""
    return torch.inference_mode() if any(tensor.is_inference() for tensor in tensors) else nullcontext()


def _load_buffers(name: str, module: nn.Module, buffers: dict[str, torch.Tensor]) -> None:
    owners = {path: (owner, leaf) for path, owner, leaf in _transient_buffers(module)}
    for path, value in buffers.items():
        if path not in owners:
            owner_path, _, leaf = path.rpartition(".")
            try:
                owners[path] = (module.get_submodule(owner_path), leaf)
            except AttributeError as error:
                raise StateMismatch(f"{name}: the snapshot has a buffer {path}, the module has not") from error
        owner, leaf = owners[path]
        current = owner._buffers.get(leaf)
        if current is not None and current.shape == value.shape and current.dtype == value.dtype:
            fill_tensor(current, value)
        else:
            owner._buffers[leaf] = value if current is None else value.to(current.device)
            owner._non_persistent_buffers_set.add(leaf)  # one that was registered in the middle of training


def _load_parameters(name: str, optimizer: torch.optim.Optimizer, saved: Mapping[int, Any]) -> None:
    """Fill the parameters whose values went with the optimizer."""
    own = {f"params.{number}": local_of(parameter) for number, parameter in enumerate(parameters_of(optimizer))}
    values = {f"params.{n}": local_of(each.local if isinstance(each, Part) else each) for n, each in saved.items()}
    for path, value in values.items():
        if path not in own or own[path].shape != value.shape:
            here = f"has shape {tuple(own[path].shape)}" if path in own else "is none"
            raise StateMismatch(f"{name}.{path} was captured in shape {tuple(value.shape)}, here it {here}")
    _warn_of_conversion(name, own, values)
    for path, value in values.items():
        fill_tensor(own[path], value)


def _check_shards(name: str, tracked: Any, state: dict[str, Any]) -> None:
    """Raises StateMismatch if a tensor was sharded in another way than it is now."""
    pairs: Iterable[tuple[str, Any, Any]] = ()
    if isinstance(tracked, nn.Module):
        pairs = ((path, state["state"].get(path), live) for path, live in own_tensors(tracked).items())
    elif isinstance(tracked, torch.optim.Optimizer):
        own = enumerate(parameters_of(tracked))
        pairs = chain(
            ((f"params.{number}", state.get("params", {}).get(number), parameter) for number, parameter in own),
            _beside_parameters(tracked, state["state"]),
        )
    for path, saved, live in pairs:
        then, now = (saved.spec if isinstance(saved, Part) else None), (spec_of(live) if is_sharded(live) else None)
        if saved is None or then is now or (then is not None and now is not None and then.fits(now)):
            continue
        raise StateMismatch(
            f"{name}.{path} was captured {'whole' if then is None else f'sharded, {then}'}, "
            f"and is {'not sharded' if now is None else f'{now}'} here: the layout must be that of the snapshot"
        )


def _beside_parameters(optimizer: torch.optim.Optimizer, state: Any) -> Iterator[tuple[str, Any, Any]]:
    """What an optimizer has saved in the shape of its sharded parameter, and that parameter."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=False)
    for parameter, index in (
        (p, i) for group, saved in groups for p, i in zip(group["params"], saved["params"], strict=False)
    ):
        for key, saved in state["state"].get(index, {}).items():
            if isinstance(saved, Part) and saved.spec.shape == tuple(parameter.shape):
                yield f"state.{index}.{key}", saved, parameter


def _keep_kinds(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict`` casts state to the parameter's dtype, which would round float32 state of bf16 weights, and
    makes containers inside it anew, without the bound of a deque or the factory of a dictionary."""
    groups = zip(optimizer.param_groups, state["param_groups"], strict=True)
    pairs = [pair for group, saved in groups for pair in zip(group["params"], saved["params"], strict=True)]
    for parameter, index in pairs:
        entry = optimizer.state.get(parameter)
        for key, saved in state["state"].get(index, {}).items():
            if isinstance(entry, dict) and key in entry:
                entry[key] = _as_saved(saved, entry[key])


def _as_saved(saved: Any, loaded: Any) -> Any:
    """What was loaded, in the kinds that were saved; ``saved`` is used up."""
    if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict) and isinstance(loaded, dict) and saved.keys() == loaded.keys():
        for key in saved:
            saved[key] = _as_saved(saved[key], loaded[key])
        return saved
    if isinstance(saved, list | tuple | deque) and isinstance(loaded, type(saved)) and len(saved) == len(loaded):
        items = [_as_saved(mine, its) for mine, its in zip(saved, loaded, strict=True)]
        return deque(items, saved.maxlen) if isinstance(saved, deque) else type(saved)(items)
    return saved if isinstance(saved, str) else loaded  # a text has become that of the generator that was to copy it


def has_elements(value: Any) -> bool:
    """A tensor of several elements is in it, or what stands for a part of one."""
    return any(
        isinstance(each, Part) or (isinstance(each, torch.Tensor) and each.numel() > 1) for each in leaves(value)
    )
