"""Who removes what a killed worker has left in /dev/shm: its named semaphores, shared arrays and tensors.

Python's resource tracker does, a child of the process that first makes such a thing, and for torch's strategy
`file_system` its manager. Both wait until the last one who uses them is gone, clear up, and end by themselves. But a
worker is killed with its whole process group: so the tracker is given one of its own. The manager has its own session.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_TRACKER = "from multiprocessing.resource_tracker import main"
_NAMES = (b"multiprocessing.resource_tracker", b"torch_shm_manager")


def let_tracker_outlive_its_group() -> None:
    """From now on a resource tracker that this process starts leads a process group of its own."""
    import subprocess
    from multiprocessing import util

    spawn = util.spawnv_passfds

    def spawn_apart(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if not args[-1].startswith(_TRACKER):
            return spawn(path, args, passfds)
        tracker = subprocess.Popen(args, executable=path, pass_fds=passfds, restore_signals=False, process_group=0)
        tracker.returncode = 0  # whoever asked for it waits for it
        return tracker.pid

    util.spawnv_passfds = spawn_apart


def is_caretaker(pid: int) -> bool:
    """Does this process end by itself, once it has cleared up after others?"""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in _NAMES)
