"""Frees a rank that waits for its peers: the sockets of its process groups and stores are shut down under it.

A thread that is blocked in gloo cannot be reached in any other way: not by ``abort``, ``shutdown`` or ``destroy`` from
another thread, nor by a signal. Shutting down the group's own sockets makes it raise within milliseconds (FACTS 6),
also inside DDP's backward and while a group is being formed. Which ones are the group's is seen by looking before and
after: whatever connects while a group is made, or a store of ours is reached, belongs to it. Listeners are left
alone, for gloo ends the process when one of its own is shut down. NCCL is aborted by torch's own call.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.distributed import distributed_c10d

_MAKES_GROUPS = "_new_process_group_helper"
"""What `init_process_group`, `new_group` and device meshes go through."""


class Sockets:
    """Those that were opened while somebody watched."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._befores: list[set[str]] = []
        """For each watch that goes on, what was there when it began."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """What is opened in the body can be severed, also while it goes on."""
        before = set(_sockets().values())
        with self._lock:
            self._befores.append(before)
        try:
            yield
        finally:
            with self._lock:
                self._befores.remove(before)
                self._known |= set(_sockets().values()) - before

    def sever(self) -> int:
        """Shut them all down; how many that were."""
        there = _sockets()
        with self._lock:
            known = self._known.union(*(set(there.values()) - before for before in self._befores))
        return sum(_shut_down(fd, name) for fd, name in there.items() if name in known)

    def forget(self) -> None:
        """The groups are gone: what has their sockets' numbers from now on is something else."""
        with self._lock:
            self._known.clear()


sockets = Sockets()
"""This process's."""
_installed = False


def install() -> bool:
    """Watch over all groups that are made from now on; whether this torch lets us."""
    global _installed
    make: Callable[..., Any] | None = getattr(distributed_c10d, _MAKES_GROUPS, None)
    if make is None:
        return False
    if not _installed:
        _installed = True

        def watched(*args: Any, **kwargs: Any) -> Any:
            with sockets.watch():
                return make(*args, **kwargs)

        setattr(distributed_c10d, _MAKES_GROUPS, watched)
    return True


def abort_accelerators() -> None:
    """Abort what runs on devices: a thread that waits for its end goes on, with an error."""
    for group in list(distributed_c10d._world.pg_map):
        for device in group._device_types:
            if device.type != "cpu":
                with suppress(RuntimeError, AttributeError):  # gone meanwhile, or it has no such call
                    group._get_backend(device).abort()


def _sockets() -> dict[int, str]:
    """Descriptor to the kernel's name (``socket:[inode]``) of all sockets of this process."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            if name.startswith("socket:"):
                found[int(fd)] = name
    return found


def _shut_down(fd: int, name: str) -> bool:
    """Whether it was still that socket, and was connected. A descriptor of our own: theirs may be closed under us."""
    with suppress(OSError):
        own = os.dup(fd)
        if os.readlink(f"/proc/self/fd/{own}") != name:  # closed, and its number used again
            os.close(own)
            return False
        with socket.socket(fileno=own) as connection:
            is_internet = connection.family in (socket.AF_INET, socket.AF_INET6)
            if is_internet and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connection.shutdown(socket.SHUT_RDWR)
                return True
    return False
