"""A worker's part of its node's arena: its lane, and the line to the daemon.

Memory is reserved and touched beside the training, on a thread and a connection of its own: fresh pages cost ten times
a copy (FACTS 1), and until the first commit nobody needs them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path

from ftrain.errors import ArenaFull
from ftrain_snapshot.arena import Mapping, touched
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.words import SnapshotId

RESTORE_TIMEOUT_SECONDS = 600.0
"""Longest wait for lost bytes to be rebuilt; an agent whose daemon cannot hears of it long before."""
RESERVE_TIMEOUT_SECONDS = 60.0
"""Longest wait for a daemon that is being restarted."""
RETRY_SECONDS = 0.05
LATE_SECONDS = 2.0
"""What is reserved ``late`` begins after so long, though nobody has asked for it yet: a first step may take minutes."""
NICENESS = 13
"""Of what happens beside the training."""
GROWTH = 1.25
"""A state that outgrew its lane gets so many times what it needs now."""


class Arena:
    """One lane. Reserved before a commit needs it, so that none pays for fresh pages."""

    def __init__(self, node_dir: Path, lane: int) -> None:
        self.client = DaemonClient(node_dir, role="worker")
        self._node_dir = node_dir
        self._lane = lane
        self._mapped: Lane | None = None
        self._reserving: _Reserving | None = None

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

    def reserve(self, unit_bytes: int, *, late: bool = False) -> None:
        """Begin to have the lane allocated, mapped and touched for such units; `ready` says when it may be used.

        ``late``: not before somebody asks that or says `hurry`, or `LATE_SECONDS` are over. No capture may be under
        way, or begin before it may be used.
        """
        deadline = time.monotonic() + RESERVE_TIMEOUT_SECONDS
        self._begin(unit_bytes, lambda: time.monotonic() < deadline, LATE_SECONDS if late else 0.0)

    def hurry(self) -> None:
        """What was reserved ``late`` begins now."""
        if self._reserving is not None:
            self._reserving.hurry()

    def grow(self, unit_bytes: int) -> None:
        """The same for a state that no longer fits.

        A daemon that is away is no error: the next snapshot asks again.
        """
        self._begin(int(unit_bytes * GROWTH), lambda: False)

    def make_do(self) -> None:
        """There is no more memory: what the lane has may be used, by a state that fits into it."""
        self._reserving = None

    def ready(self, patience_seconds: float | None = None) -> bool:
        """Whether the lane has what was asked for, after waiting so long (None: until it has). Raises ArenaFull."""
        return self._reserving is None or self._reserving.is_mapped(patience_seconds)

    def fits(self, unit_bytes: int) -> bool:
        """The lane has room for so much."""
        return unit_bytes <= self.lane.capacity

    def close(self) -> None:
        """Unmap and hang up."""
        if self._reserving is not None:
            self._reserving.stop()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None
        self.client.close()

    def _begin(self, unit_bytes: int, again: Callable[[], bool], late_seconds: float = 0.0) -> None:
        if self._reserving is not None:
            self._reserving.stop()
        ask = partial(_reserve, self._node_dir, self._lane, unit_bytes, again)
        self._reserving = _Reserving(ask, self._refresh, late_seconds)

    def _refresh(self) -> list[tuple[Mapping, int]]:
        """Map what there is now: new mappings, each with what of it was touched before."""
        known, lane = self._mapped, self.lane
        if known is None:
            return [(mapping, 0) for mapping in (*lane.homes, *(region.mapping for region in lane.regions))]
        return lane.refresh()


class _Reserving:
    """A thread that has memory allocated, maps it, and then populates its pages, behind whatever else runs here.

    Nobody need wait for it: it may outlive its session, and then does nothing any more.
    """

    def __init__(
        self, ask: Callable[[], None], refresh: Callable[[], list[tuple[Mapping, int]]], late_seconds: float
    ) -> None:
        self._ask, self._refresh, self._late_seconds = ask, refresh, late_seconds
        self._wanted = threading.Event()
        self._mapped: Future[None] = Future()
        self._stopped = False
        self._lock = threading.Lock()
        """Held while memory of the lane is mapped or populated."""
        threading.Thread(target=self._work, name="ftrain-reserve", daemon=True).start()

    def is_mapped(self, patience_seconds: float | None) -> bool:
        """As `Arena.ready`."""
        self.hurry()
        if not wait([self._mapped], patience_seconds).done:
            return False
        self._mapped.result()
        return True

    def hurry(self) -> None:
        """As `Arena.hurry`."""
        self._wanted.set()

    def stop(self) -> None:
        """The lane is not touched any more when this returns; the copies pay for what is left."""
        with self._lock:
            self._stopped = True
        self.hurry()

    def _work(self) -> None:
        with suppress(OSError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._wanted.wait(self._late_seconds)
            if not self._stopped:
                self._ask()
            with self._lock:
                fresh = [] if self._stopped else self._refresh()
        except BaseException as error:  # for whoever waits
            self._mapped.set_exception(error)
            return
        self._mapped.set_result(None)
        for mapping, start in fresh:
            pages = touched(mapping, start)
            while self._goes_on(pages):
                pass

    def _goes_on(self, pages: Iterator[None]) -> bool:
        """Populate some more, unless stopped; whether there may be more to do."""
        with self._lock:
            return not self._stopped and next(pages, self) is None


def _reserve(node_dir: Path, lane: int, unit_bytes: int, again: Callable[[], bool]) -> None:
    with DaemonClient(node_dir, role="worker") as client:
        while True:
            try:
                client.reserve(lane, unit_bytes)
                return
            except ArenaTooSmall as error:
                raise ArenaFull(error.needed_bytes, error.available_bytes) from error
            except (DaemonLost, TimeoutError):
                if not again():
                    return
                time.sleep(RETRY_SECONDS)
