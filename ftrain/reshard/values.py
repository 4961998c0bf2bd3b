"""What is no tensor, taken over from several ranks: they must agree, or what they have is each rank's own.

Optimizers keep settings by group and state by number. Between worlds neither is the same (a pipeline's stages hold
other parameters each), so both are taken apart by the names of parameters, and put together anew.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import xxhash
from torch import Tensor

from ftrain.errors import StateMismatch
from ftrain.logical.state import RankState
from ftrain.sharded import leaves
from ftrain.shards import Part
from ftrain.state import has_elements

_NAMES = ("params", "param_names")
"""Of a parameter group: what is not a setting."""
EXTRA = "_extra_state"
"""Under this name torch keeps what a module says by ``get_extra_state``."""


def difference(left: Any, right: Any, path: str) -> str | None:
    """The path of the first value that is not the same; of tensors only dtype and shape count. None: there is none."""
    if left is right:
        return None
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return None if (left.dtype, left.shape) == (right.dtype, right.shape) else path
    if type(left) is not type(right):
        return path
    if isinstance(left, dict):
        if list(left) != list(right):
            return path
        pairs: Iterable[tuple[Any, Any, str]] = ((left[key], right[key], f"{path}.{key}") for key in left)
    elif isinstance(left, list | tuple | deque):
        if len(left) != len(right):
            return path
        pairs = ((a, b, f"{path}[{index}]") for index, (a, b) in enumerate(zip(left, right, strict=True)))
    elif isinstance(left, np.ndarray | np.generic):
        same = (left.dtype, left.shape) == (right.dtype, right.shape) and left.tobytes() == right.tobytes()
        return None if same else path
    else:
        return None if left == right or (left != left and right != right) else path
    return next((found for a, b, where in pairs if (found := difference(a, b, where)) is not None), None)


def holds(value: Any, kind: type) -> bool:
    """Something of that kind is in it: a tensor, or a part of a sharded one, which means nothing in another world."""
    return any(isinstance(each, kind) for each in leaves(value))


def sharded_outside(name: str) -> StateMismatch:
    """Of an object of the user's: nothing tells what of it the ranks of another world have."""
    return StateMismatch(f"{name} holds sharded tensors that are no module's and no optimizer's: track a module")


def agreed(name: str, values: Mapping[int, Any], per_rank: bool, rank: int) -> int:
    """From which old rank the new rank ``rank`` takes an object's values, given those of all that have it.

    Raises StateMismatch if they differ, unless they are ``per_rank``.
    """
    ranks = sorted(values)
    for other in ranks[1:] if not per_rank else ():
        if (where := difference(values[ranks[0]], values[other], name)) is not None:
            raise StateMismatch(
                f"{where} differs between rank {ranks[0]} and rank {other} of the world that is read: values must be "
                f"equal on all ranks, or called each rank's own by ctx.layout({{{name!r}: 'per_rank'}})"
            )
    return ranks[rank % len(ranks)]


class Kept(NamedTuple):
    """What an old rank's optimizer has of one parameter."""

    rank: int
    settings: dict[str, Any]
    """Of its group: learning rate, betas."""
    values: dict[str, Any]
    """State that is no tensor."""


def by_parameter(name: str, ranks: Iterable[tuple[int, Any, Sequence[str]]]) -> dict[str, Kept]:
    """What the old ranks have of each parameter, given (rank, ``state_dict()``, parameters' names in their order).

    Raises StateMismatch if one has no such state, or two differ.
    """
    found: dict[str, Kept] = {}
    equal: set[tuple[int, int]] = set()
    for rank, state, names in ranks:
        try:
            kept = list(_of_rank(rank, state, names))
        except (LookupError, TypeError, AttributeError) as error:
            raise StateMismatch(
                f"{name} of rank {rank} keeps its state in a way of its own, which no other world can read: {error!r}"
            ) from error
        for parameter, one in kept:
            first = found.setdefault(parameter, one)
            groups = id(first.settings), id(one.settings)  # those of all parameters of two groups
            where = None if groups in equal else difference(first.settings, one.settings, name)
            if where is None:
                equal.add(groups)
                where = difference(first.values, one.values, f"{name} state")
            if where is not None:
                raise StateMismatch(f"{where} of {parameter} differs between ranks {first.rank} and {rank}")
    return found


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Of a parameter group: all but its parameters."""
    return {key: value for key, value in group.items() if key not in _NAMES}


def _of_rank(rank: int, state: Any, names: Sequence[str]) -> Iterable[tuple[str, Kept]]:
    for group in state["param_groups"]:
        settings = settings_of(group)
        for index in group["params"]:
            values = state["state"].get(index, {}).items()
            plain = {key: value for key, value in values if not isinstance(value, Tensor | Part)}
            yield names[index], Kept(rank, settings, plain)


def check_within(name: str, kept: Mapping[str, Kept], states: Iterable[RankState]) -> None:
    """Tensors within a list or dictionary of an optimizer's state have no layout, so they cannot be cut otherwise.

    ``states``: of the ranks of both worlds. Raises StateMismatch for those of a parameter of which a rank has a part.
    """
    within = {
        parameter: key for parameter, one in kept.items() for key, value in one.values.items() if has_elements(value)
    }
    for state in states if within else ():
        for tensor in state.tensors:
            if tensor.name in within and tensor.local_shape != tensor.shape:
                raise StateMismatch(
                    f"{name} has tensors within {within[tensor.name]!r} of its state of {tensor.name}, of which ranks "
                    "have parts: another world can take over only those that are values of the state themselves"
                )


def group_settings(name: str, number: int, parameters: Sequence[str], kept: Mapping[str, Kept]) -> Kept | None:
    """The settings of a new group with these parameters. None: it has none.

    Raises StateMismatch if the parameters were in groups with different ones, or one was in none.
    """
    first: Kept | None = None
    for parameter in parameters:
        one = kept.get(parameter)
        if one is None:
            raise StateMismatch(f"{name} has the parameter {parameter}, which the snapshot's has not")
        first = first or one
        if (where := difference(first.settings, one.settings, f"{name}.param_groups[{number}]")) is not None:
            raise StateMismatch(
                f"{where} of {parameters[0]} and of {parameter} differ in the snapshot: here they are in one group"
            )
    return first


def empty_group_settings(number: int, states: Mapping[int, Any]) -> Kept | None:
    """The settings of a new group without parameters: what all old ranks have that have one of this number.

    None: they have none, or differ, as a pipeline's stages may that group in ways of their own.
    """
    first: Kept | None = None
    for rank, state in states.items():
        if number >= len(state["param_groups"]):
            continue
        one = Kept(rank, settings_of(state["param_groups"][number]), {})
        first = first or one
        if difference(first.settings, one.settings, "") is not None:
            return None
    return first


def derived_rng(first: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """Generators' states (rng.py) for a rank that the old world did not have, from those of its rank 0."""
    seed = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode([first["torch"], list(first["python"][1]), rank]))
    version, words, gauss = random.Random(seed).getstate()
    state: dict[str, Any] = {
        "python": (version, array("I", words).tobytes(), gauss),
        "numpy": np.random.RandomState(seed % 2**32).get_state(legacy=False),
        "torch": torch.Generator().manual_seed(seed).get_state().numpy().tobytes(),
    }
    if "cuda" in first:  # seed and offset
        state["cuda"] = seed.to_bytes(8, "little") + bytes(8)
    return state
