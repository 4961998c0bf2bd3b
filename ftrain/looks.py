"""Thousands of tensors and dictionaries, asked at each commit whether they are what they were: all at once.

Asked one by one from Python, two thousand tensors cost more than all else in a commit. The recorder's library asks
them in one call (``comm/cpp/tensors.cpp``); where it is not there, or cannot ask something of this kind, Python does.
The GIL is kept meanwhile, so nobody changes anything.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Sequence
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
_GRAD = attrgetter("grad")
_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64


@cache
def _native() -> ctypes.PyDLL | None:
    """The library's functions; None: Python has to ask."""
    try:
        functions = ctypes.PyDLL(str(library.cached()))
        functions.ftrain_tensors_look.argtypes = [_POINTER, _COUNT, _POINTER, _POINTER]
        functions.ftrain_tensors_with_gradient.argtypes = [_POINTER, _COUNT]
        functions.ftrain_tensors_with_gradient.restype = _COUNT
        functions.ftrain_dictionaries_same.argtypes = [_POINTER, _POINTER, _COUNT, _POINTER]
        functions.ftrain_dictionaries_have.argtypes = [_POINTER, _COUNT, _POINTER, _COUNT, _POINTER]
    except (library.Unavailable, OSError, AttributeError):
        return None
    return functions


def are_same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """By identity: tensors compare by their elements."""
    return len(left) == len(right) and all(map(is_, left, right))


class Tensors:
    """A list of tensors, kept alive. All have memory of their own and count their changes (no inference tensors)."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.all = list(tensors)
        self._handles = np.array([tensor._cdata for tensor in self.all], np.uint64)
        self._at = self._handles.ctypes.data
        self._native = _native()

    def addresses(self) -> Numbers:
        """Where each one's first element lies."""
        return self._look()[0]

    def versions(self) -> Numbers:
        """How often torch has counted a change in place of each."""
        return self._look()[1]

    def have_gradients(self) -> bool:
        """Whether any has one."""
        if self._native is not None:
            found: int = self._native.ftrain_tensors_with_gradient(self._at, len(self.all))
            if found >= 0:
                return found > 0
        return any(gradient is not None for gradient in map(_GRAD, self.all))

    def _look(self) -> tuple[Numbers, Numbers]:
        if self._native is not None:
            addresses, versions = np.empty((2, len(self.all)), np.int64)
            places = (addresses.ctypes.data, versions.ctypes.data)
            if self._native.ftrain_tensors_look(self._at, len(self.all), *places) == 0:
                return addresses, versions
            self._native = None
        # An array first: numpy takes three times as long to read a list.
        addresses = np.frombuffer(array("q", map(Tensor.data_ptr, self.all)), np.int64)
        return addresses, np.frombuffer(array("q", map(_VERSION, self.all)), np.int64)


class Dictionaries:
    """Dictionaries, and what they held when this was made: all of it is kept alive, so that no address comes twice."""

    def __init__(self, dictionaries: Iterable[dict[Any, Any]]) -> None:
        self._all = list(dictionaries)
        self.keys = list(chain.from_iterable(self._all))
        """All their keys, in order."""
        self.values = list(chain.from_iterable(map(dict.values, self._all)))
        """All their values, in order."""
        self._native = _native()
        if self._native is not None:
            self._where = _pointers(self._all)
            self._sizes = np.array(list(map(len, self._all)), np.int64)
            self._items = _pointers(chain.from_iterable(zip(self.keys, self.values, strict=True)))

    def are_same(self) -> bool:
        """Whether they hold the very same things, under equal keys, in the same order."""
        if self._native is not None:
            places = (self._where.ctypes.data, self._sizes.ctypes.data, len(self._all), self._items.ctypes.data)
            return bool(self._native.ftrain_dictionaries_same(*places))
        values = list(chain.from_iterable(map(dict.values, self._all)))
        return are_same(values, self.values) and list(chain.from_iterable(self._all)) == self.keys


class Members:
    """Dictionaries that have something under each of some keys, as they had when this was made."""

    def __init__(self, dictionaries: Iterable[dict[str, Any]], keys: Sequence[str]) -> None:
        self._all, self._keys = list(dictionaries), list(keys)
        self.values = self._take()
        self._native = _native()
        if self._native is not None:
            self._where, self._names, self._had = _pointers(self._all), _pointers(self._keys), _pointers(self.values)

    def are_same(self) -> bool:
        """Whether it is the very same things that they have there."""
        if self._native is not None:
            places = (self._where.ctypes.data, len(self._all), self._names.ctypes.data, len(self._keys))
            return bool(self._native.ftrain_dictionaries_have(*places, self._had.ctypes.data))
        return are_same(self._take(), self.values)

    def _take(self) -> list[Any]:
        return [one[key] for one in self._all for key in self._keys]


def _pointers(objects: Iterable[object]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Where objects lie: their ``id``, in CPython."""
    return np.array(list(map(id, objects)), np.uint64)
