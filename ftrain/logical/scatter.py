"""Bytes that were read, put where they belong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ftrain.logical.reads import Read

Bytes = NDArray[np.uint8]


def scatter(read: Read, data: Bytes, memory_of: Callable[[int, int], Bytes]) -> None:
    """Copy what was read to the tensors that it is of.

    ``data``: the bytes of ``read``, from its start. ``memory_of(tensor, term)``: all memory of a local tensor, from its
    first element on. Raises TypeError or ValueError, before it writes, for a copy that would leave either.
    """
    for copy in read.copies:
        block, begin = copy.block, copy.start - read.start
        shape = (*block.counts, block.length)
        source = np.ndarray(shape, np.uint8, data.data, begin, (*block.source_steps, 1))
        target = np.ndarray(
            shape, np.uint8, memory_of(copy.tensor, copy.term).data, block.target, (*block.target_steps, 1)
        )
        target[...] = source
