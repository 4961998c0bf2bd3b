"""A worker's part of its node's arena: the region of its lane in each slot, and the line to the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ftrain.errors import ArenaFull
from ftrain.layout import round_up
from ftrain_snapshot.arena import SLOTS, Region
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost
from ftrain_snapshot.messages import SnapshotId

RESTORE_TIMEOUT_SECONDS = 600.0
"""Longest wait for lost bytes to be rebuilt; an agent whose daemon cannot hears of it long before."""
RESERVE_TIMEOUT_SECONDS = 60.0
"""Longest wait for a daemon that is being restarted."""
RETRY_SECONDS = 0.05
GROWTH = 1.25
"""A state that outgrew its regions gets so many times what it needs now."""


class Arena:
    """The regions of one lane. Reserved before training starts, so that no commit pays for fresh pages."""

    def __init__(self, node_dir: Path, lane: int) -> None:
        self.client = DaemonClient(node_dir, role="worker")
        self._node_dir = node_dir
        self._lane = lane
        self._regions: dict[int, Region] = {}

    def wait_restored(self, generation: int, snapshot: SnapshotId) -> tuple[memoryview, bytes]:
        """Data and manifest of the snapshot that this generation starts from; valid until `close`.

        Raises SnapshotIncomplete, ChecksumMismatch, TimeoutError.
        """
        self.client.wait_restored(generation, RESTORE_TIMEOUT_SECONDS)
        return self.region(snapshot.slot).read(snapshot)

    def reserve(self, size_bytes: int) -> None:
        """Have every slot allocated, touched and mapped for data and manifest of this size. Raises ArenaFull."""
        deadline = time.monotonic() + RESERVE_TIMEOUT_SECONDS
        self._reserve(size_bytes, lambda: time.monotonic() < deadline)
        for slot in range(SLOTS):
            self.region(slot).refresh()

    def grow(self, size_bytes: int) -> None:
        """The state no longer fits. Drop all views of the regions first. Slots that are in use grow later.

        A daemon that is away is no error: the next snapshot asks again. Raises ArenaFull.
        """
        self._reserve(int(size_bytes * GROWTH), lambda: False)
        for region in self._regions.values():
            region.refresh()

    def region(self, slot: int) -> Region:
        """The region in this slot, mapped and touched."""
        if slot not in self._regions:
            self._regions[slot] = Region.open(self._node_dir, slot, self._lane)
        return self._regions[slot]

    def fits(self, slot: int, data_bytes: int, manifest_bytes: int) -> bool:
        """The slot has room for so much."""
        return round_up(round_up(data_bytes) + manifest_bytes) <= self.region(slot).capacity

    def close(self) -> None:
        """Unmap and hang up."""
        for region in self._regions.values():
            region.close()
        self._regions.clear()
        self.client.close()

    def _reserve(self, size_bytes: int, again: Callable[[], bool]) -> None:
        while True:
            try:
                self.client.reserve(self._lane, size_bytes)
                return
            except ArenaTooSmall as error:
                raise ArenaFull(error.needed_bytes, error.available_bytes) from error
            except (DaemonLost, TimeoutError):
                if not again():
                    return
                time.sleep(RETRY_SECONDS)
