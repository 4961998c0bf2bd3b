"""Python values as bytes, safely: msgpack with tags, never pickle.

`Packer.pack` turns a tree of values into plain msgpack types. Scalars stay bare; every container becomes an array
whose first item is a tag, so that tuples, sets, ordered dicts and the like come back as what they were. Tensors
are taken out of the tree: the packer keeps them in a list, and the tree keeps their index; of a sharded one (DTensor)
that of its local tensor, and what that is a part of. Types must match exactly: a subclass (an enum, a named tuple, a
user's own dict) would come back as something else, so it is refused.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ftrain.errors import NotTrackable
from ftrain.sharded import is_sharded, local_of, spec_of
from ftrain.shards import Part, packed_spec, unpacked_spec

MAX_DEPTH = 64
"""Nesting allowed in a state; deeper ones are taken for cycles."""

LIST, TUPLE, DICT, ORDERED, SET, FROZENSET, COUNTER, DEFAULTDICT, DEQUE = range(9)
SIZE, DTYPE, DEVICE, SCALAR, ARRAY, COMPLEX, BIG, TEXT, TENSOR, PART = range(9, 19)

_FACTORIES: dict[str, Callable[[], Any] | None] = {"": None, "list": list, "int": int, "float": float, "dict": dict}
_SEQUENCES: dict[type, int] = {list: LIST, tuple: TUPLE, set: SET, frozenset: FROZENSET, torch.Size: SIZE}
_BUILDERS: dict[int, Callable[[Iterable[Any]], Any]] = {
    LIST: list, TUPLE: tuple, SET: set, FROZENSET: frozenset, SIZE: torch.Size,
}  # fmt: skip


class Packer:
    """One walk over one tree. ``add_tensor(tensor, path)`` returns the index that stands for a tensor.

    Of a DTensor it is given the local one.
    """

    def __init__(self, add_tensor: Callable[[torch.Tensor, Callable[[], str]], int]) -> None:
        self._add_tensor = add_tensor
        self._path: list[Any] = []

    def path(self) -> str:
        """Where the walk is, as a user would write it: ``scheduler.lr_lambdas[0]``."""
        parts = [f"[{part}]" if type(part) is int else f".{part}" for part in self._path]
        return "".join(parts).removeprefix(".") or "state"

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """What is packed in this block lies at ``part`` of the tree."""
        self._path.append(part)
        yield
        self._path.pop()

    def pack(self, value: Any, name: str | None = None) -> Any:
        """The value as plain msgpack types. Raises NotTrackable naming the path of what cannot be kept."""
        if name is not None:
            self._path.append(name)
        kind = type(value)
        if kind in _BARE:
            packed = value
        elif kind is int:
            packed = value if -(2**63) <= value < 2**64 else [BIG, hex(value)]
        elif kind is str:
            packed = value if value.isascii() or _is_clean(value) else [TEXT, value.encode("utf-8", "surrogatepass")]
        else:
            packed = self._pack_container(kind, value)
        if name is not None:
            self._path.pop()
        return packed

    def _pack_container(self, kind: type, value: Any) -> Any:
        if len(self._path) > MAX_DEPTH:
            raise self._refusal(kind, f"nested deeper than {MAX_DEPTH} levels: does it contain itself?")
        if isinstance(value, torch.Tensor):
            return self._pack_tensor(kind, value)
        if kind is dict:
            return [DICT, *self._pairs(value)]
        if kind in _SEQUENCES:
            return [_SEQUENCES[kind], *self._items(value)]
        if kind is OrderedDict:
            # Module.state_dict() hangs its version numbers on the dict; load_state_dict wants them back.
            metadata = getattr(value, "_metadata", None)
            return [ORDERED, None if metadata is None else self.pack(metadata, "_metadata"), *self._pairs(value)]
        if kind is Counter:
            return [COUNTER, *self._pairs(value)]
        if kind is defaultdict:
            factory = "" if value.default_factory is None else getattr(value.default_factory, "__name__", "?")
            if _FACTORIES.get(factory, "?") is not value.default_factory:
                raise self._refusal(kind, "only list, int, float, dict and None are kept as default factories")
            return [DEFAULTDICT, factory, *self._pairs(value)]
        if kind is deque:
            return [DEQUE, value.maxlen, *self._items(value)]
        return self._pack_leaf(kind, value)

    def _pack_tensor(self, kind: type, tensor: torch.Tensor) -> list[Any]:
        if not is_sharded(tensor):
            return [TENSOR, self._add_tensor(tensor, self.path)]
        try:
            spec = spec_of(tensor)
        except ValueError as error:
            raise self._refusal(kind, str(error)) from error
        return [PART, self._add_tensor(local_of(tensor), self.path), *packed_spec(spec)]

    def _pack_leaf(self, kind: type, value: Any) -> Any:
        if kind is complex:
            return [COMPLEX, value.real, value.imag]
        if kind is bytearray:
            raise self._refusal(kind, "use bytes")
        if kind is torch.dtype:
            return [DTYPE, str(value).removeprefix("torch.")]
        if kind is torch.device:
            return [DEVICE, str(value)]
        if isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.kind != "V":
            return [SCALAR, value.dtype.str, value.tobytes()]
        if kind is np.ndarray and not value.dtype.hasobject and value.dtype.kind != "V":
            return [ARRAY, value.dtype.str, list(value.shape), np.ascontiguousarray(value).tobytes()]
        raise self._refusal(
            kind,
            "a snapshot keeps tensors and plain values (numbers, text, bytes, lists, dicts, numpy arrays), "
            "never pickles; leave it out of state_dict() or turn it into such values there",
        )

    def _items(self, values: Iterable[Any]) -> list[Any]:
        packed = []
        for position, item in enumerate(values):
            self._path.append(position)
            packed.append(self.pack(item))
            self._path.pop()
        return packed

    def _pairs(self, values: dict[Any, Any]) -> list[Any]:
        flat: list[Any] = []
        for key, item in values.items():
            if type(item) in _BARE and type(key) is str and key.isascii():  # most entries, each step: be quick
                flat += (key, item)
                continue
            self._path.append(key)
            flat += (self.pack(key), self.pack(item))
            self._path.pop()
        return flat

    def _refusal(self, kind: type, reason: str) -> NotTrackable:
        return NotTrackable(self.path(), f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."), reason)


_BARE = frozenset({type(None), bool, float, bytes})


def _is_clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unpack(packed: Any, tensors: Sequence[Any]) -> Any:
    """The way back from `Packer.pack`; ``tensors[i]`` is what index i stands for. For a DTensor there is a `Part`."""
    if type(packed) is not list:
        return packed
    tag, items = packed[0], packed[1:]
    if tag == TENSOR:
        return tensors[items[0]]
    if tag == PART:
        return Part(tensors[items[0]], unpacked_spec(items[1:]))
    if tag in _BUILDERS:
        return _BUILDERS[tag](unpack(item, tensors) for item in items)
    if tag in (DICT, COUNTER):
        return {DICT: dict, COUNTER: Counter}[tag](_unpack_pairs(items, tensors))
    if tag == ORDERED:
        ordered: OrderedDict[Any, Any] = OrderedDict(_unpack_pairs(items[1:], tensors))
        if items[0] is not None:
            ordered._metadata = unpack(items[0], tensors)  # type: ignore[attr-defined]
        return ordered
    if tag == DEFAULTDICT:
        return defaultdict(_FACTORIES[items[0]], _unpack_pairs(items[1:], tensors))
    if tag == DEQUE:
        return deque((unpack(item, tensors) for item in items[1:]), maxlen=items[0])
    return _unpack_leaf(tag, items)


def _unpack_pairs(flat: list[Any], tensors: Sequence[Any]) -> dict[Any, Any]:
    values = iter(flat)
    return {unpack(key, tensors): unpack(item, tensors) for key, item in zip(values, values, strict=True)}


def _unpack_leaf(tag: int, items: list[Any]) -> Any:
    if tag == COMPLEX:
        return complex(items[0], items[1])
    if tag == BIG:
        return int(items[0], 16)
    if tag == TEXT:
        return items[0].decode("utf-8", "surrogatepass")
    if tag == DTYPE:
        return getattr(torch, items[0])
    if tag == DEVICE:
        return torch.device(items[0])
    if tag == SCALAR:
        return _array(items[0], [1], items[1])[0]
    if tag == ARRAY:
        return _array(*items)
    raise ValueError(f"unknown tag {tag} in a snapshot's values")


def _array(dtype: str, shape: list[int], data: bytes) -> Any:
    kind = np.dtype(dtype)
    return np.frombuffer(data, kind).reshape(shape).copy() if kind.itemsize else np.zeros(shape, kind)  # empty texts
