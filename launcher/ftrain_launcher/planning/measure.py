"""How fast this machine copies into warm shared memory: the unit of what a snapshot costs."""

from __future__ import annotations

import mmap
import os
import tempfile
import time

_BYTES = 128 * 2**20
_ROUNDS = 5


def copy_bytes_per_second(folder: str) -> float:
    """The best of five copies by one thread, into pages that were touched before; takes under a second.

    Raises OSError if ``folder`` has no room for 128 MiB.
    """
    source = memoryview(bytearray(_BYTES))
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, _BYTES)  # ftruncate succeeds on a full tmpfs, and copying ends in SIGBUS
        with mmap.mmap(file.fileno(), _BYTES) as target:
            return _BYTES / min(_copy_seconds(target, source) for _ in range(1 + _ROUNDS))


def _copy_seconds(target: mmap.mmap, source: memoryview) -> float:
    begun = time.perf_counter()
    target[:] = source
    return time.perf_counter() - begun
