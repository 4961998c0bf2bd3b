"""The arena's files: how they grow, and what is said where there is no room."""

import errno
import os
from pathlib import Path

import pytest

from ftrain_snapshot import arena
from ftrain_snapshot.arena import SLOTS
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.manifest import CHUNK_BYTES


def test_a_full_file_system_is_said_when_an_outlined_home_is_written_or_filled(tmp_path, monkeypatch):
    path = arena.home_path(tmp_path, 0, 0)
    arena.outline(path, 8192)
    home = arena.Mapping(path)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ArenaTooSmall):
        home.write(0, memoryview(b"x"))
    with pytest.raises(ArenaTooSmall):
        next(arena.fill(path))
    home.close()


def test_files_never_shrink(tmp_path):
    path = arena.home_path(tmp_path, 0, 0)
    assert arena.extend(path, 8192) == 8192
    assert arena.extend(path, 4096) == 8192
    arena.outline(path, 4096)
    assert path.stat().st_size == 8192


def test_too_little_space_is_said_with_both_numbers_and_nothing_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(arena, "TOUCH_BYTES", 1 << 60)
    path = arena.home_path(tmp_path, 0, 0)
    with pytest.raises(ArenaTooSmall, match="available") as caught:
        arena.extend(path, 1 << 60)
    assert path.stat().st_size == 0
    assert caught.value.needed_bytes > caught.value.available_bytes


def test_what_a_node_needs_counts_all_lanes_all_slots_and_their_parity():
    size = 3 * CHUNK_BYTES
    assert arena.required({0: size, 1: size}, 3, 1) == 2 * SLOTS * (size + arena.table_bytes(size) + CHUNK_BYTES)
    assert arena.required({0: size}, 2, 2) == SLOTS * (size + arena.table_bytes(size) + 2 * 2 * CHUNK_BYTES)
    assert arena.required({0: size}, 1, 0) == SLOTS * (size + arena.table_bytes(size))
    assert arena.parity_bytes(4096, 3) == 4096
    big = arena.home_bytes(256 << 20)
    assert arena.required({0: big}, 3, 1) < 1.34 * SLOTS * (256 << 20) + (8 << 20)


def test_unmapping_does_not_list_the_pages_as_ones_in_use(tmp_path):
    path = tmp_path / "slot0.lane0"
    arena.extend(path, arena.PAGE_BYTES)
    home = arena.Mapping(path)
    try:
        areas = Path("/proc/self/smaps").read_text().split(f"{path}\n")
        flags = next(line for line in areas[1].splitlines() if line.startswith("VmFlags:"))
    finally:
        home.close()
    assert "sr" in flags.split(), "the kernel was not told (proc(5): sequential read advise provided)"
