"""New tensors whose pages come cheaply.

Filling fresh memory costs ten times the copy, for the page faults (FACTS 1); huge pages cost a fraction. What an
allocator returns has its first page touched already, which rules out a huge page there; so some tensors together get
a mapping of their own that nobody has touched. The mapping lives as long as any of them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ftrain.layout import TensorSpec, round_up

HUGE_PAGE_BYTES = 2 << 20
SLAB_BYTES = 64 << 20
"""So much is mapped together, or one tensor if it is larger."""


def huge_tensors(specs: Sequence[TensorSpec]) -> Iterator[Tensor]:
    """New, empty CPU tensors of these kinds. They cannot be resized in place: for who keeps them as they are."""
    slab: list[TensorSpec] = []
    size = 0
    for spec in specs:
        if slab and size + spec.size_bytes > SLAB_BYTES:
            yield from _slab(slab, size)
            slab, size = [], 0
        slab.append(spec)
        size += round_up(spec.size_bytes)
    if slab:
        yield from _slab(slab, size)


def _slab(specs: list[TensorSpec], size: int) -> Iterator[Tensor]:
    mapping = mmap.mmap(-1, size + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    offset = -ctypes.addressof(ctypes.c_char.from_buffer(mapping)) % HUGE_PAGE_BYTES
    for spec in specs:
        flat = torch.frombuffer(mapping, dtype=torch.uint8, count=spec.size_bytes, offset=offset)
        empty = torch.empty(0, dtype=getattr(torch, spec.dtype))
        yield empty.set_(flat.untyped_storage(), 0, spec.shape, spec.strides)
        offset += round_up(spec.size_bytes)
