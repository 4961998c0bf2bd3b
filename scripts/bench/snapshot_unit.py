"""What scripts/bench/snapshot.py measures by: one copy into warm memory, and a clock that all ranks start together."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

CPU = torch.device("cpu")


class Unit:
    """One ``copy_`` of so many bytes into shared memory whose pages are all there (pinned, where there is a GPU)."""

    def __init__(self, size_bytes: int, folder: Path, device: torch.device) -> None:
        path = folder / f"unit-{dist.get_rank()}"
        self.source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
        self.target = torch.from_file(str(path), shared=True, size=size_bytes, dtype=torch.uint8)
        path.unlink()
        if device.type == "cuda":
            torch.cuda.cudart().cudaHostRegister(self.target.data_ptr(), size_bytes, 0)  # type: ignore[no-untyped-call]
        for _ in range(2):
            self.copy()

    def copy(self) -> None:
        self.target.copy_(self.source)


def lend(size_bytes: int) -> None:
    """Touch so much memory, and give it back at once: the kernel has it at hand then.

    The host of a virtual machine takes freed memory away within seconds (free page reporting of a balloon), and brings
    it back page by page, for ten times what the kernel's own share of a page fault costs. That is the host's time.
    """
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as mapping:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(mapping)), 1, size_bytes)


def settle(device: torch.device) -> None:
    """Let the device come to its end: host times mean nothing before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(action: Callable[[], object], device: torch.device = CPU, *, together: bool = True) -> float:
    """Seconds of the action, begun by all ranks together."""
    if together:
        dist.barrier()
    settle(device)
    start = time.perf_counter()
    action()
    settle(device)
    return time.perf_counter() - start
