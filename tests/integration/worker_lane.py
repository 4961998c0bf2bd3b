"""A lane without a daemon: files made here, a line that only notes what it is told, and captures in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftrain.capture import Capturer
from ftrain.gradients import live_gradients, watch_optimizer
from ftrain.restore import read_state
from ftrain.rng import rng_state
from ftrain.state import check_owners, load_state
from ftrain_snapshot.arena import SLOTS, extend, home_bytes, home_path, table_bytes, table_path
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.manifest import unit_bytes
from ftrain_snapshot.words import SnapshotId


class Line:
    """What the daemon would have been told."""

    def __init__(self) -> None:
        self.captures: list[SnapshotId] = []
        self.seals: list[SnapshotId] = []
        self.skips: list[SnapshotId] = []

    def captured(self, lane: int, snapshot: SnapshotId) -> None:
        self.captures.append(snapshot)

    def sealed(self, lane: int, snapshot: SnapshotId) -> None:
        self.seals.append(snapshot)

    def skip(self, snapshot: SnapshotId) -> None:
        self.skips.append(snapshot)


def allocate(folder: Path, unit: int, lane: int = 0) -> None:
    """As the daemon would."""
    size = home_bytes(unit)
    for slot in range(SLOTS):
        for path, length in (
            (home_path(folder, slot, lane), size),
            (table_path(folder, slot, lane), table_bytes(size)),
        ):
            while extend(path, length) < length:
                pass


class Rank:
    """One rank's captures into its lane; the newest two sealed ones are never overwritten."""

    def __init__(self, folder: Path, objects: Mapping[str, Any], *, room: float = 1.5) -> None:
        self.objects = dict(objects)
        self.line = Line()
        self.capturer = Capturer(0, 1, set, 0, self.line)
        for tracked in objects.values():
            if hasattr(tracked, "param_groups"):
                watch_optimizer(tracked)
        self.capturer.track(objects)
        self._folder = folder
        self._room = room
        self.lane: Lane | None = None

    def collect(self, version: int) -> tuple[Any, bytes]:
        content = self.capturer.collect(
            lambda parameters: {"step": version, "gradients": live_gradients(parameters), "rng": rng_state()}
        )
        return content, self.capturer.manifest(version, content)

    def commit(self, version: int) -> SnapshotId:
        """Begin a capture, as a commit does; it is over at the next, or with `finish`."""
        self.capturer.finish()
        content, manifest = self.collect(version)
        unit = unit_bytes(content.data_bytes, len(manifest))
        if self.lane is None:
            allocate(self._folder, int(unit * self._room) + (4 << 20))
            self.lane = Lane(self._folder, 0)
        elif unit > self.lane.capacity:
            allocate(self._folder, int(unit * self._room))
            self.lane.refresh()
        taken = {snapshot.slot for snapshot in self.line.seals[-2:]}
        slot = next(slot for slot in range(SLOTS) if slot not in taken)
        snapshot = SnapshotId(version, 1, slot)
        self.capturer.begin(snapshot, content, manifest, self.lane)
        return snapshot

    def finish(self) -> None:
        self.capturer.finish()

    def region(self, snapshot: SnapshotId) -> Region:
        assert self.lane is not None
        return self.lane.regions[snapshot.slot]

    def read(self, snapshot: SnapshotId, objects: Mapping[str, Any]) -> dict[str, Any]:
        """Restore into other objects; what else was captured is returned."""
        assert self.lane is not None
        state = read_state(self.region(snapshot), self.lane.homes, snapshot, 0, 1, objects).tree
        check_owners(objects, state["objects"])
        for name, tracked in objects.items():
            load_state(name, tracked, state["objects"][name])
        return state

    def close(self) -> None:
        self.capturer.close()
        if self.lane is not None:
            self.lane.close()

    def __enter__(self) -> Rank:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
