"""The guard of the suite itself: what is left behind is seen, and what is not ours is left alone."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, used_by_others, wait_until_clean

DETACHED = "import os, sys; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); sys.stdin.read()"
"""A child that became a daemon: its parent is gone, its session is its own; it ends with its input."""


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def detached(mark: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", DETACHED], env={"MARK": mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.communicate(timeout=10)


@pytest.mark.alone  # whatever comes to be in shared memory meanwhile would be taken for what is left
def test_a_process_that_left_its_parent_and_session_is_found_by_its_mark(detached: int, mark: str) -> None:
    assert list(marked_processes("MARK", mark)) == [detached]
    assert [line.split(":")[0] for line in wait_until_clean("MARK", mark, shared_memory_entries(), 0.0)] == [
        f"process {detached}"
    ]


def test_a_file_in_shared_memory_is_found_unless_another_run_uses_it(mark: str) -> None:
    before = shared_memory_entries()
    path = SHARED_MEMORY / f"ftrain-{mark}"
    path.touch()
    try:
        assert f"shared memory: {path}" in wait_until_clean("MARK", mark, before, 0.0)
        with subprocess.Popen([sys.executable, "-c", "input()", str(path)], stdin=subprocess.PIPE, text=True) as other:
            assert used_by_others(path.name, "MARK", mark)
            other.communicate("\n", timeout=10)
    finally:
        path.unlink()
    assert path.name not in shared_memory_entries()
