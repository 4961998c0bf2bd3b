"""The lanes of one node, as its daemon sees them: found again, read, outlined, or given memory as their units grow.

The parity of these lanes' like is in parities.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot import arena
from ftrain_snapshot.arena import HOMES, SLOTS
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.loop import Work
from ftrain_snapshot.manifest import Header, State
from ftrain_snapshot.words import SnapshotId


class Lanes:
    """All lanes of one node."""

    def __init__(self, node_dir: Path) -> None:
        self._node_dir = node_dir
        self._known: dict[int, Lane] = {}

    def get(self, lane: int) -> Lane | None:
        """The lane's memory, or None if none has been allocated."""
        known = self._known.get(lane)
        if known is not None:
            return known
        with suppress(OSError, ValueError):
            return self._known.setdefault(lane, Lane(self._node_dir, lane))
        return None

    def region(self, slot: int, lane: int) -> Region | None:
        """One slot of it."""
        known = self.get(lane)
        return known.regions[slot] if known is not None and 0 <= slot < SLOTS else None

    def header(self, slot: int, lane: int) -> tuple[State, Header | None]:
        """What the region's header says now."""
        region = self.region(slot, lane)
        return region.header() if region is not None else (State.EMPTY, None)

    def sealed(self, lane: int, snapshot: SnapshotId) -> Header | None:
        """The header, if this lane of the snapshot is sealed here."""
        state, header = self.header(snapshot.slot, lane)
        return header if state is State.SEALED and header and header.snapshot == snapshot else None

    def scan(self, lanes: int) -> Iterator[tuple[int, State, Header]]:
        """(lane, state, header) of all regions that hold anything."""
        for slot in range(SLOTS):
            for lane in range(lanes):
                state, header = self.header(slot, lane)
                if header is not None and header.snapshot.slot == slot:
                    yield lane, state, header

    def outline(self, lane: int, unit_bytes: int) -> None:
        """Have room for such a unit: memory comes with what is put there, the rest when it is allocated.

        Raises ArenaTooSmall if it is clear that there is not enough for all of it; nothing is changed then.
        """
        known, size = self.get(lane), arena.home_bytes(unit_bytes)
        if known is not None and known.capacity >= unit_bytes:
            return
        homes, tables = self._homes(lane), self._tables(lane)
        needed = arena.required({lane: size}, 1, 0)
        allocated = sum(arena.allocated(path) for path in (*homes, *tables) if path.exists())
        if needed > (there := allocated + arena.available(self._node_dir)):
            raise ArenaTooSmall(needed, there)
        for home in homes:
            arena.outline(home, size)
        for table in tables:
            while arena.extend(table, arena.table_bytes(size)) < arena.table_bytes(size):
                pass
        if known is not None:
            known.refresh()

    def allocate(self, lane: int, size: int) -> Work:
        """Give memory to homes of at least ``size``, and to their tables. Raises ArenaTooSmall.

        They are not touched here: reading maps 16 pages at once, a tenth of what it costs to have them mapped for
        writing, which is for the worker to do (`ftrain.arena`).
        """
        known = self.get(lane)
        for home in known.homes if known is not None else ():
            if arena.allocated(home.path) < home.size:
                for _ in arena.fill(home.path):
                    yield
        wanted = {path: size for path in self._homes(lane)}
        wanted |= {path: arena.table_bytes(size) for path in self._tables(lane)}
        for path, length in wanted.items():
            while arena.extend(path, length) < length:
                yield
        if known is None:
            self._known[lane] = Lane(self._node_dir, lane)
        else:
            known.refresh()

    def clear(self, stays: Callable[[SnapshotId], bool]) -> None:
        """Forget every snapshot, sealed or begun, that does not stay. Only while no worker of this node lives."""
        for path in self._node_dir.glob("slot0.lane*"):
            lane = self.get(int(path.name.removeprefix("slot0.lane")))
            for region in lane.regions if lane is not None else ():
                _, header = region.header()
                if header is None or not stays(header.snapshot):
                    region.clear()

    def _homes(self, lane: int) -> list[Path]:
        return [arena.home_path(self._node_dir, home, lane) for home in range(HOMES)]

    def _tables(self, lane: int) -> list[Path]:
        return [arena.table_path(self._node_dir, slot, lane) for slot in range(SLOTS)]
