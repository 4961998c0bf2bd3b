"""Thousands of tensors and containers, asked at each commit whether they are what they were: all at once.

Asked one by one from Python, two thousand tensors cost more than all else in a commit. The recorder's library asks
them in one call (``comm/cpp/tensors.cpp``); where it is not there, or cannot ask something of this kind, Python does.
The GIL is kept meanwhile, so nobody changes anything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrain.comm import library

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
_VERSION = torch._C.TensorBase._version.__get__  # type: ignore[attr-defined]
"""The property's own getter: half the price of asking for the attribute."""
_FORM: tuple[Callable[[Tensor], Any], ...] = (
    Tensor.size, Tensor.stride, attrgetter("dtype"), Tensor.is_conj, Tensor.is_neg,
)  # fmt: skip
_GRAD = attrgetter("grad")
_LOCAL = attrgetter("_local_tensor")
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
_LIST, _DICTIONARY, _MEMBERS = range(3)
"""Kinds of containers, as ``tensors.cpp`` has them."""
_IN_PLACE, _MOVED = range(2)
"""What it says of tensors."""


@cache
def _native() -> ctypes.PyDLL | None:
    """The library's functions; None: Python has to ask."""
    try:
        functions = ctypes.PyDLL(str(library.cached()))
        functions.ftrain_tensors_known.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
        functions.ftrain_tensors_forms.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER]
        functions.ftrain_tensors_look.argtypes = [_POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _POINTER]
        functions.ftrain_tensors_with_gradient.argtypes = [_POINTER, _COUNT, _COUNT]
        functions.ftrain_tensors_with_gradient.restype = _COUNT
        functions.ftrain_containers_same.argtypes = [_POINTER, _POINTER, _POINTER, _COUNT, _POINTER]
    except (library.Unavailable, OSError, AttributeError):
        return None
    return functions


@cache
def _tensor_offset() -> int:
    """Where the Python object of a tensor keeps the address of torch's: found, since it is said nowhere; -1: it is not.

    That of `Tensor._cdata` would not do: `torch.utils.swap_tensors` gives an object another tensor.
    """
    tensor = torch.empty(1)
    words = (ctypes.c_uint64 * (type(tensor).__basicsize__ // 8)).from_address(id(tensor))
    places = [8 * place for place, word in enumerate(words) if word == tensor._cdata]
    return places[0] if len(places) == 1 else -1


def _forms(tensors: Iterable[Tensor]) -> list[list[Any]]:
    """How the bytes of each are read."""
    return [list(map(ask, tensors)) for ask in _FORM]


def _slot_offset(tensors: Sequence[Any]) -> int:
    """Where these objects, all of one type, keep the address of their local tensor; -1: that is not known."""
    if len({type(tensor) for tensor in tensors}) != 1:
        return -1
    words = (ctypes.c_uint64 * (type(tensors[0]).__basicsize__ // 8)).from_address(id(tensors[0]))
    places = [8 * place for place, word in enumerate(words) if word == id(tensors[0]._local_tensor)]
    return places[0] if len(places) == 1 else -1


def are_same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """By identity: tensors compare by their elements."""
    return len(left) == len(right) and all(map(is_, left, right))


class Tensors:
    """A list of tensors, kept alive."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.all = list(tensors)
        self._objects = _pointers(self.all)
        self._asked = (self._objects.ctypes.data, len(self.all), _tensor_offset())
        self._native = _native() if self._are_known() else None

    def objects_asked(self, offset: int) -> tuple[int, int, int]:
        """How the library is told of these objects, and to look so many bytes from their beginning."""
        return self._objects.ctypes.data, len(self.all), offset

    def _are_known(self) -> bool:
        """Whether the library finds these tensors."""
        native, offset = _native(), _tensor_offset()
        handles = np.array([tensor._cdata for tensor in self.all], np.uint64)
        return native is not None and offset >= 0 and native.ftrain_tensors_known(*self._asked, handles.ctypes.data)

    def have_gradients(self) -> bool:
        """Whether any has one."""
        if self._native is not None:
            found: int = self._native.ftrain_tensors_with_gradient(*self._asked)
            if found >= 0:
                return found > 0
        return any(gradient is not None for gradient in map(_GRAD, self.all))


class Placed(Tensors):
    """Tensors that have memory of their own; where it lay when this was made, and how it was read: the same bytes are
    another matrix after ``t_()``, or when ``.data`` is given a view of them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__(tensors)
        self._addresses = np.array(list(map(Tensor.data_ptr, self.all)), np.uint64)
        self._versions: Numbers = np.empty(len(self.all), np.int64)
        self._forms = _forms(self.all)
        self._packed_forms = np.empty(len(self.all), np.uint64)
        if self._native is not None and self._native.ftrain_tensors_forms(*self._asked, self._packed_forms.ctypes.data):
            self._native = None
        self._places = tuple(array.ctypes.data for array in (self._addresses, self._packed_forms, self._versions))

    def look(self) -> tuple[bool, Numbers]:
        """(all lie there still, and are read as they were; how often torch has counted a change in place of each, 0
        where it does not count)."""
        if self._native is not None:
            found = self._native.ftrain_tensors_look(*self._asked, *self._places)
            if found in (_IN_PLACE, _MOVED):
                return found == _IN_PLACE, self._versions.copy()
            self._native = None
        in_place = list(map(Tensor.data_ptr, self.all)) == self._addresses.tolist()
        in_place = in_place and _forms(self.all) == self._forms
        return in_place, np.array([0 if one.is_inference() else _VERSION(one) for one in self.all], np.int64)


class Faces:
    """DTensors: whether each has the local tensor that it had when this was made, and what torch counts of it.

    An operation on a DTensor counts there and not at its local tensor, one on the local tensor only there (FACTS 7).
    """

    def __init__(self, faces: Iterable[tuple[int, Tensor]]) -> None:
        """``faces``: with each one the index of its local tensor among those that it is looked at with."""
        pairs = [(index, face) for index, face in faces if not face.is_inference()]
        self._placed = Placed(face for _, face in pairs)
        self._at = np.array([index for index, _ in pairs], np.intp)
        self._behind = list(map(_LOCAL, self._placed.all))
        self._locals = _pointers(self._behind)
        self._asked = (*self._placed.objects_asked(_slot_offset(self._placed.all)), self._locals.ctypes.data)
        native = _native()
        self._native = native if native is not None and self._asked[2] > 0 else None

    def add_versions(self, versions: Numbers) -> None:
        """Add to the local tensors' counts what is counted here."""
        if len(self._at):
            np.add.at(versions, self._at, self._placed.look()[1])

    def are_same(self) -> bool:
        """Whether nothing has been put behind them."""
        if self._native is not None:
            return bool(self._native.ftrain_tensors_known(*self._asked))
        return are_same(list(map(_LOCAL, self._placed.all)), self._behind)


class Containers:
    """Lists and dictionaries, and what they held when this was made: kept alive, so that no address comes twice."""

    def __init__(
        self,
        *,
        lists: Iterable[Sequence[Any]] = (),
        dictionaries: Iterable[dict[Any, Any]] = (),
        members: Iterable[dict[str, Any]] = (),
        keys: Sequence[str] = (),
    ) -> None:
        """Of ``members`` it only counts what they have under ``keys``; all of them have something there."""
        self._lists, self._dictionaries, self._members = list(lists), list(dictionaries), list(members)
        self._keys = keys
        self._sizes, self.items = self._read()
        """``items``: all that they held, in order; of dictionaries a key and its value in turn."""
        mappings = [*self._dictionaries, *self._members]
        counts = (len(self._lists), len(self._dictionaries), len(self._members))
        kinds = np.repeat(np.array([_LIST, _DICTIONARY, _MEMBERS], np.uint8), counts)
        # What is handed over are addresses, which of an object is its ``id`` in CPython; so the arrays are kept.
        where = _pointers(chain(self._lists, mappings))
        self._arrays = (kinds, where, np.array(self._sizes, np.int64), _pointers(self.items))
        kinds_at, containers_at, sizes_at, items_at = (array.ctypes.data for array in self._arrays)
        self._asked = (kinds_at, containers_at, sizes_at, len(kinds), items_at)
        known = all(isinstance(one, list) for one in self._lists) and all(isinstance(one, dict) for one in mappings)
        self._native = _native() if known else None

    def are_same(self) -> bool:
        """Whether they hold the very same things, in the same order."""
        if self._native is not None:
            return bool(self._native.ftrain_containers_same(*self._asked))
        sizes, items = self._read()
        return sizes == self._sizes and are_same(items, self.items)

    def held_as(self, other: Containers) -> bool:
        """Whether the other ones, which may be other containers, held the very same things."""
        return self._sizes == other._sizes and are_same(self.items, other.items)

    def _read(self) -> tuple[list[int], list[Any]]:
        sizes = [*map(len, self._lists), *map(len, self._dictionaries), *[len(self._keys)] * len(self._members)]
        pairs = chain.from_iterable(one.items() for one in self._dictionaries)
        chosen = ((key, one[key]) for one in self._members for key in self._keys)
        return sizes, [*chain.from_iterable(self._lists), *chain.from_iterable(chain(pairs, chosen))]


def _pointers(objects: Iterable[object]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(list(map(id, objects)), np.uint64)
