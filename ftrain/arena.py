"""A worker's part of its node's arena: its lane, and the line to the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ftrain.errors import ArenaFull
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.messages import SnapshotId

RESTORE_TIMEOUT_SECONDS = 600.0
"""Longest wait for lost bytes to be rebuilt; an agent whose daemon cannot hears of it long before."""
RESERVE_TIMEOUT_SECONDS = 60.0
"""Longest wait for a daemon that is being restarted."""
RETRY_SECONDS = 0.05
GROWTH = 1.25
"""A state that outgrew its lane gets so many times what it needs now."""


class Arena:
    """One lane. Reserved before training starts, so that no commit pays for fresh pages."""

    def __init__(self, node_dir: Path, lane: int) -> None:
        self.client = DaemonClient(node_dir, role="worker")
        self._node_dir = node_dir
        self._lane = lane
        self._mapped: Lane | None = None

    @property
    def lane(self) -> Lane:
        """The lane, mapped when first asked for. Raises FileNotFoundError if the daemon has not allocated it."""
        if self._mapped is None:
            self._mapped = Lane(self._node_dir, self._lane)
        return self._mapped

    def wait_restored(self, generation: int, snapshot: SnapshotId) -> Region:
        """The region with the snapshot that this generation starts from.

        Raises SnapshotIncomplete, TimeoutError.
        """
        self.client.wait_restored(generation, RESTORE_TIMEOUT_SECONDS)
        return self.lane.regions[snapshot.slot]

    def reserve(self, unit_bytes: int) -> None:
        """Have the lane allocated, touched and mapped for units of this size. Raises ArenaFull."""
        deadline = time.monotonic() + RESERVE_TIMEOUT_SECONDS
        self._reserve(unit_bytes, lambda: time.monotonic() < deadline)
        fresh = self._mapped is None
        grown = self.lane.refresh()
        if fresh:
            self.lane.touch()
        for mapping, old_size in grown:
            mapping.touch(old_size)

    def grow(self, unit_bytes: int) -> None:
        """The state no longer fits; no capture may be under way.

        A daemon that is away is no error: the next snapshot asks again. Raises ArenaFull.
        """
        self._reserve(int(unit_bytes * GROWTH), lambda: False)
        for mapping, old_size in self.lane.refresh():
            mapping.touch(old_size)

    def fits(self, unit_bytes: int) -> bool:
        """The lane has room for so much."""
        return unit_bytes <= self.lane.capacity

    def close(self) -> None:
        """Unmap and hang up."""
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        self.client.close()

    def _reserve(self, unit_bytes: int, again: Callable[[], bool]) -> None:
        while True:
            try:
                self.client.reserve(self._lane, unit_bytes)
                return
            except ArenaTooSmall as error:
                raise ArenaFull(error.needed_bytes, error.available_bytes) from error
            except (DaemonLost, TimeoutError):
                if not again():
                    return
                time.sleep(RETRY_SECONDS)
