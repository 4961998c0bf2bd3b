"""Where many tensors lie, and how often torch has counted a change of them: asked of all at once.

Asked one by one from Python, two thousand tensors cost more than all else in a commit. The recorder's library asks them
in one call (``comm/cpp/tensors.cpp``); where it is not there, or a tensor is of a kind that it cannot ask, Python does.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ftrain.comm import library

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
_VERSION = torch._C.TensorBase._version.__get__  # type: ignore[attr-defined]
"""The property's own getter: half the price of asking for the attribute."""


@cache
def _native() -> Callable[..., int] | None:
    """The library's function; the GIL is kept while it runs, so that nobody changes a tensor meanwhile."""
    try:
        found = ctypes.PyDLL(str(library.cached())).ftrain_tensors_look
    except (library.Unavailable, OSError, AttributeError):
        return None
    found.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    return found


class Tensors:
    """A list of tensors, kept alive. All have memory of their own and count their changes (no inference tensors)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.all = list(tensors)
        self._handles = np.array([tensor._cdata for tensor in tensors], np.uint64)
        self._native = _native()

    def addresses(self) -> Numbers:
        """Where each one's first element lies."""
        return self._look()[0]

    def versions(self) -> Numbers:
        """How often torch has counted a change in place of each."""
        return self._look()[1]

    def _look(self) -> tuple[Numbers, Numbers]:
        addresses, versions = np.empty((2, len(self.all)), np.int64)
        if self._native is not None:
            places = (self._handles.ctypes.data, len(self._handles), addresses.ctypes.data, versions.ctypes.data)
            if self._native(*places) == 0:
                return addresses, versions
            self._native = None
        # An array first: numpy takes three times as long to read a list.
        addresses = np.frombuffer(array("q", map(Tensor.data_ptr, self.all)), np.int64)
        return addresses, np.frombuffer(array("q", map(_VERSION, self.all)), np.int64)
