"""A process that hangs, though no signal has stopped it: its cgroup is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import require_root
from snapshot_nodes import wait_until

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_WAIT_SECONDS = 30.0


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """While the context lasts, or until it is killed. Skips the test if not root, or without version 2 of cgroups."""
    require_root()
    mount = next((each for each in _MOUNTS if (each / "cgroup.controllers").exists()), None)
    if mount is None:
        pytest.skip("needs cgroups, version 2")
    before = Path(f"/proc/{pid}/cgroup").read_text().split("0::/", 1)[1].splitlines()[0]
    folder = mount / f"ftrain-test-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (folder / "cgroup.events").read_text(), _WAIT_SECONDS, f"{pid} to be frozen")
        yield
    finally:
        (folder / "cgroup.freeze").write_text("0")
        for left in (folder / "cgroup.procs").read_text().split():
            (mount / before / "cgroup.procs").write_text(left)
        wait_until(lambda: "populated 0" in (folder / "cgroup.events").read_text(), _WAIT_SECONDS, "an empty cgroup")
        folder.rmdir()
