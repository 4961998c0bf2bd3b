"""The files of a node's shared memory: their names and sizes, how they come by their memory, and how they are mapped.

For each lane there are three homes of its bytes, and the tables of three slots that refer to them (lane.py); parity
(parities.py); one page of control words (control.py).
Plain files in the node's folder, mapped shared by worker and daemon, so that each outlives the other's death
(FACTS 11a: never ``multiprocessing.shared_memory``, whose tracker unlinks them). The daemon allocates and touches;
a worker only maps. Three slots: two complete snapshots are kept while the third is written.

Fresh pages cost ten times a copy. Where a node is rebuilt, its homes are *outlined* first: files of their full length
without memory, of which that of the rebuilt chunks comes with their bytes. Who reserves the lane has the rest filled.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.manifest import CHUNK_BYTES, HEADER_BYTES, chunk_count
from ftrain_snapshot.placement import round_up

SLOTS = HOMES = 3
PAGE_BYTES = 4096
MARGIN_BYTES = 8 << 20
"""Left free on the arena's file system, for everyone else's small files."""
TOUCH_BYTES = 16 << 20
"""Pages are allocated and touched in pieces, so that whoever does it can do something else in between."""
RECORD_BYTES = 16
"""Of one chunk, in a slot's table."""
_MADV_POPULATE_WRITE = 23
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def home_path(node_dir: str | Path, home: int, lane: int) -> Path:
    """The file of one home of a lane's unit."""
    return Path(node_dir) / f"slot{home}.lane{lane}"


def table_path(node_dir: str | Path, slot: int, lane: int) -> Path:
    """The file of one slot's header and chunk table for a lane."""
    return Path(node_dir) / f"slot{slot}.table{lane}"


def parity_path(node_dir: str | Path, home: int, lane: int, rotation: int) -> Path:
    """The file of one home of the parity that a node keeps for a lane in one rotation."""
    return Path(node_dir) / f"slot{home}.parity{lane}.{rotation}"


def home_bytes(unit_bytes: int) -> int:
    """Size of a home for such a unit, with a little room to grow."""
    return round_up(unit_bytes + max(16 << 10, unit_bytes >> 8), PAGE_BYTES)


def table_bytes(home_bytes_: int) -> int:
    """Size of the table for such a home."""
    return round_up(HEADER_BYTES + chunk_count(home_bytes_) * RECORD_BYTES, PAGE_BYTES)


def parity_bytes(home_bytes_: int, data: int) -> int:
    """Size of the parity, in one rotation, of such homes on ``data`` nodes."""
    return round_up(min(home_bytes_, -(-chunk_count(home_bytes_) // data) * CHUNK_BYTES), PAGE_BYTES)


def required(homes: dict[int, int], data: int, parity: int) -> int:
    """Bytes that lanes with homes of these sizes need, tables and parity included."""
    each = [size + table_bytes(size) + parity * parity_bytes(size, data) for size in homes.values()]
    return SLOTS * sum(each)


def available(node_dir: str | Path) -> int:
    """Bytes that the arena's file system can still give."""
    fs = os.statvfs(node_dir)
    return max(0, fs.f_bavail * fs.f_frsize - MARGIN_BYTES)


def allocated(path: Path) -> int:
    """Bytes of the file that have memory."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * 512)


def outline(path: Path, size: int) -> None:
    """Make the file at least ``size`` long, without memory. Never shrinks it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def fill(path: Path) -> Iterator[None]:
    """Give memory to all of an outlined file, a piece at a time; its bytes stay. Raises ArenaTooSmall."""
    size = path.stat().st_size
    for start in range(0, size, TOUCH_BYTES):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, start, min(TOUCH_BYTES, size - start))
        except OSError as error:
            raise ArenaTooSmall(size - start, available(path.parent)) from error
        finally:
            os.close(fd)
        yield


def extend(path: Path, size: int) -> int:
    """Allocate one more piece of the file towards ``size``; its size afterwards. Never shrinks it.

    Raises ArenaTooSmall (posix_fallocate says so at once, where ftruncate would end in SIGBUS; FACTS 11a).
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        have = os.fstat(fd).st_size
        if have >= size:
            return have
        piece = min(TOUCH_BYTES, size - have)
        try:
            os.posix_fallocate(fd, have, piece)
        except OSError as error:
            raise ArenaTooSmall(size - have, available(path.parent)) from error
        return have + piece
    finally:
        os.close(fd)


class Mapping:
    """One file, mapped shared and writable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.size = os.fstat(fd).st_size
            self._map = mmap.mmap(fd, self.size)
            # Else the kernel lists each page as one in use when it is unmapped: 28 % of what a worker's end takes.
            self._map.madvise(mmap.MADV_SEQUENTIAL)
        finally:
            os.close(fd)
        self.view = memoryview(self._map)

    def touch(self, offset: int = 0, length: int | None = None) -> None:
        """Populate pages, so that the first copy does not pay for them (FACTS 1: ten times the copy)."""
        end = self.size if length is None else min(self.size, offset + length)
        if offset < end:
            held = ctypes.c_char.from_buffer(self._map)  # not ``mmap.madvise``, which keeps other threads waiting
            # It may fail, before kernel 5.14: then the first copy pays.
            _madvise(ctypes.addressof(held) + offset, end - offset, _MADV_POPULATE_WRITE)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes by way of the file. Raises ArenaTooSmall, where a store into an outlined file ends in SIGBUS.

        Pages that have no memory yet get it filled: they need not be cleared or mapped first (0.6 s per GB of 1.0).
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            while data:
                written = os.pwrite(fd, data, offset)
                offset, data = offset + written, data[written:]
        except OSError as error:
            raise ArenaTooSmall(len(data), available(self.path.parent)) from error
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap, unless somebody still holds a view: then the last of them does."""
        with suppress(BufferError):
            self.view.release()
            self._map.close()


def touched(mapping: Mapping, start: int) -> Iterator[None]:
    """Populate what a mapping gained, a piece at a time."""
    for offset in range(start // PAGE_BYTES * PAGE_BYTES, mapping.size, TOUCH_BYTES):
        mapping.touch(offset, TOUCH_BYTES)
        yield
