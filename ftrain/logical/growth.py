"""Optimizer state that a rank does not have yet: a new optimizer makes it at its first step, a resumed one reads it."""

from __future__ import annotations

from collections import defaultdict

from ftrain.logical.axes import axis, whole
from ftrain.logical.reads import World
from ftrain.logical.state import LogicalTensor, RankState, contiguous_strides


def with_optimizer_state(state: RankState, world: World) -> RankState:
    """The same rank, with the optimizer state that the world holds of its parameters.

    What has a parameter's shape is laid out as the parameter is here. What has not, a count of steps, is whole, and on
    how many ranks is not known (``copies``): this is to be read into, not to be checked.
    """
    held: dict[str, list[LogicalTensor]] = defaultdict(list)
    for tensor in world.tensors.values():
        held[tensor.like].append(tensor)
    tied_there = {alias: name for each in world.states for alias, name in each.aliases.items()}
    added = []
    for parameter in state.tensors:
        if parameter.like:
            continue
        names = [parameter.name, *(alias for alias, name in state.aliases.items() if name == parameter.name)]
        known = next((each for name in names for each in (name, tied_there.get(name, "")) if held.get(each)), "")
        for tensor in held[known] if known else ():
            name = tensor.name.replace(f".{known}.", f".{parameter.name}.", 1)
            if name not in state.by_name:
                added.append(_beside(parameter, name, tensor))
    return RankState(state.rank, (*state.tensors, *added), state.aliases, state.parameters)


def _beside(parameter: LogicalTensor, name: str, tensor: LogicalTensor) -> LogicalTensor:
    if tensor.shape == parameter.shape:
        axes, strides = parameter.axes, parameter.strides
    else:
        axes, strides = tuple(axis(whole(length)) for length in tensor.shape), contiguous_strides(tensor.shape)
    return LogicalTensor(
        name, tensor.dtype, tensor.item_bytes, tensor.shape, axes, strides,
        parameter.copies, parameter.scope, parameter.name,
    )  # fmt: skip
