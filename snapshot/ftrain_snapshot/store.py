"""What this node keeps: regions, parity and catalogs of three slots, and how a restarted daemon finds them again.

The truth about data is in the regions' own headers, written by workers; the truth about parity is in the catalog of
its slot, replaced as one file once the parity is complete and removed before its first byte changes. The last
membership is kept, too: it says whose share the bytes are.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from ftrain_snapshot import arena
from ftrain_snapshot.arena import PAGE_BYTES, SLOTS, TOUCH_BYTES, Mapping, Region
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.loop import Work
from ftrain_snapshot.manifest import Catalog, Header, State, UnitDescriptor, checksum, chunk_spans
from ftrain_snapshot.messages import Holding, Membership, SnapshotId
from ftrain_snapshot.placement import round_up, segment_bytes, segment_spans

SLICE_BYTES = 8 << 20
"""Bytes to checksum before others get their turn (well under a millisecond)."""


def sums_of(data: memoryview) -> Generator[None, None, bytes]:
    """``manifest.checksums``, a slice at a time."""
    sums: list[int] = []
    for offset, length in chunk_spans(len(data)):
        sums.append(checksum(data[offset : offset + length]))
        if (offset + length) % SLICE_BYTES == 0:
            yield
    return struct.pack(f"<{len(sums)}Q", *sums)


class Store:
    """The files in one node's folder. One thread uses it."""

    def __init__(self, node_dir: Path) -> None:
        self.node_dir = node_dir
        self.membership: Membership | None = None
        self.unusable: set[SnapshotId] = set()
        """Snapshots whose data here looks whole but is not: damaged, or being rebuilt."""
        self._regions: dict[tuple[int, int], Region] = {}
        self._parities: dict[tuple[int, int], Mapping] = {}
        self._catalogs: dict[int, Catalog] = {}
        self._reserved: dict[int, int] = {}

    # Re-attaching.

    def attach(self) -> Work:
        """Find what an earlier daemon kept. Data or parity that is not as its catalog says counts as none."""
        with suppress(OSError, msgspec.MsgspecError):
            self.membership = msgspec.msgpack.decode((self.node_dir / "membership").read_bytes(), type=Membership)
        for slot in range(SLOTS):
            with suppress(OSError, msgspec.MsgspecError):
                raw = self._catalog_path(slot).read_bytes()
                self._catalogs[slot] = msgspec.msgpack.decode(raw, type=Catalog)
        for catalog in list(self._catalogs.values()):
            bad = yield from self.bad_parity(catalog)
            catalog.parity = [p for p in catalog.parity if p.lane not in bad]
            if self.membership is None:
                continue
            for lane in range(catalog.lanes):
                unit = catalog.unit(self.membership.position, lane)
                if self.sealed(lane, catalog.snapshot) and unit and (yield from self.bad_segments(unit)):
                    self.unusable.add(catalog.snapshot)

    def bad_segments(self, unit: UnitDescriptor) -> Generator[None, None, list[int]]:
        """Segments of a local unit whose bytes are missing or not those described."""
        region = self.region(unit.snapshot.slot, unit.lane)
        if region is None or len(region.unit(unit.unit_bytes)) < unit.unit_bytes:
            return list(range(len(unit.sums)))
        bad = []
        for segment, (offset, length) in enumerate(segment_spans(unit.unit_bytes, len(unit.sums))):
            sums = yield from sums_of(region.unit(unit.unit_bytes)[offset : offset + length])
            if sums != unit.sums[segment]:
                bad.append(segment)
        return bad

    def bad_parity(self, catalog: Catalog) -> Generator[None, None, list[int]]:
        """Lanes whose local parity is missing or not as described."""
        good = []
        for parity in catalog.parity:
            view = self.parity(catalog.snapshot.slot, parity.lane)[: parity.parity_bytes]
            if (yield from sums_of(view)) == parity.sums:
                good.append(parity.lane)
        return [lane for lane in range(catalog.lanes) if lane not in good]

    def remember(self, membership: Membership) -> None:
        """Keep the membership for a daemon that is started here after this one."""
        self.membership = membership
        self._replace(self.node_dir / "membership", msgspec.msgpack.encode(membership))

    # Regions.

    def region(self, slot: int, lane: int) -> Region | None:
        """The region as it is now, or None if there is none."""
        region = self._regions.get((slot, lane))
        if region is not None:
            return region
        with suppress(OSError, ValueError):
            return self._regions.setdefault((slot, lane), Region.open(self.node_dir, slot, lane, touch=False))
        return None

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

    def reserve(self, lane: int, data_bytes: int, segments: int, parity: int) -> Work:
        """Allocate and touch all slots of a lane, and its parity. Raises ArenaTooSmall."""
        size = max(arena.file_bytes(data_bytes), self._reserved.get(lane, 0))
        wanted = self._reserved | {lane: size}
        needed = arena.required(wanted, segments, parity)
        allocated = sum(path.stat().st_size for path in self._files("lane", "parity"))
        if needed > (there := allocated + arena.available(self.node_dir)):
            raise ArenaTooSmall(needed, there)
        self._reserved = wanted
        parity_size = parity * round_up(segment_bytes(size, segments), PAGE_BYTES)
        try:
            for slot in range(SLOTS):
                yield from self.grow_region(slot, lane, size)
                yield from self.grow_parity(slot, lane, parity_size)
        except ArenaTooSmall as error:  # another node of this machine was faster
            raise ArenaTooSmall(needed, allocated + error.available_bytes) from error

    def grow_region(self, slot: int, lane: int, size: int) -> Work:
        """Make the region's file at least ``size`` long, in place. Raises ArenaTooSmall."""
        path, known = arena.region_path(self.node_dir, slot, lane), self._regions.get((slot, lane))
        while arena.extend(path, size) < size:
            yield
        if known is None:
            region = self._regions[slot, lane] = Region.open(self.node_dir, slot, lane, touch=False)
            yield from _touched((region.mapping, 0))
        else:
            yield from _touched(known.refresh(touch=False))

    def grow_parity(self, slot: int, lane: int, size: int) -> Work:
        """Make the parity's file at least ``size`` long. Raises ArenaTooSmall."""
        old = self._parities.get((slot, lane))
        if size == 0 or (old is not None and old.size >= size):
            return
        path = arena.parity_path(self.node_dir, slot, lane)
        while arena.extend(path, size) < size:
            yield
        self._parities[slot, lane] = mapping = Mapping(path)
        yield from _touched((mapping, old.size if old is not None else 0))

    def parity(self, slot: int, lane: int) -> memoryview:
        """All bytes of the parity's file; none if there is none."""
        if (slot, lane) not in self._parities:
            try:
                self._parities[slot, lane] = Mapping(arena.parity_path(self.node_dir, slot, lane))
            except (OSError, ValueError):
                return memoryview(b"")
        return self._parities[slot, lane].view

    # Catalogs.

    def catalog(self, snapshot: SnapshotId) -> Catalog | None:
        """The record of this very snapshot."""
        catalog = self._catalogs.get(snapshot.slot)
        return catalog if catalog is not None and catalog.snapshot == snapshot else None

    def begin(self, snapshot: SnapshotId, lanes: int) -> Catalog | None:
        """The record to fill in; what the slot held before is over. None if the slot holds something newer."""
        catalog = self._catalogs.get(snapshot.slot)
        if catalog is not None and catalog.snapshot == snapshot:
            return catalog
        if not 0 <= snapshot.slot < SLOTS or (catalog is not None and catalog.snapshot > snapshot):
            return None
        self._catalog_path(snapshot.slot).unlink(missing_ok=True)
        self._catalogs[snapshot.slot] = catalog = Catalog(snapshot, lanes, [], [])
        return catalog

    def save(self, catalog: Catalog) -> None:
        """Keep the record for a daemon that is started here after this one."""
        self._replace(self._catalog_path(catalog.snapshot.slot), msgspec.msgpack.encode(catalog))

    def drop(self, snapshot: SnapshotId, lanes: int) -> None:
        """The job gave it up: it is not restored from here, also after a restart."""
        catalog = self.begin(snapshot, lanes)
        if catalog is not None and not catalog.dropped:
            catalog.dropped, catalog.parity = True, []
            self.save(catalog)

    def drop_newer(self, restore: SnapshotId | None) -> None:
        """Forget everything newer than ``restore`` (all, if None). Only while no worker of this node lives."""
        for path in self._files("lane"):
            slot, lane = (int(part) for part in path.name.removeprefix("slot").split(".lane"))
            region = self.region(slot, lane)
            if region is not None:
                _, header = region.header()
                if header is None or restore is None or header.snapshot > restore:
                    region.clear()
        for slot, catalog in list(self._catalogs.items()):
            if restore is None or catalog.snapshot > restore:
                self._catalog_path(slot).unlink(missing_ok=True)
                del self._catalogs[slot]
        self.unusable = {s for s in self.unusable if restore is not None and s <= restore}

    # Answers.

    def holdings(self, position: int, lanes: int, parity: int) -> tuple[Holding, ...]:
        """What is here, as the headers say now."""
        held: dict[SnapshotId, dict[int, int]] = {}
        for lane, state, header in self.scan(lanes):
            if state is State.SEALED and header.snapshot not in self.unusable:
                held.setdefault(header.snapshot, {})[lane] = header.unit_bytes
        for catalog in self._catalogs.values():
            held.setdefault(catalog.snapshot, {})
            if catalog.dropped:
                del held[catalog.snapshot]
        result = []
        for snapshot, units in sorted(held.items()):
            catalog_ = self.catalog(snapshot)
            stored = catalog_.parity if catalog_ is not None else []
            data, kept = len(units) == lanes, parity > 0 and len(stored) == lanes
            if data or kept:
                sizes = sum(units.values()), sum(p.parity_bytes for p in stored)
                result.append(Holding(snapshot, position, data, kept, *sizes))
        return tuple(result)

    def remove_files(self) -> None:
        """Remove everything of this class from the folder."""
        names = ("control.new", "control", "membership", "membership.new")
        for path in [*self._files("lane", "parity", "catalog"), *(self.node_dir / name for name in names)]:
            path.unlink(missing_ok=True)

    def _files(self, *kinds: str) -> Iterator[Path]:
        return (path for kind in kinds for path in self.node_dir.glob(f"slot*.{kind}*"))

    def _catalog_path(self, slot: int) -> Path:
        return self.node_dir / f"slot{slot}.catalog"

    @staticmethod
    def _replace(path: Path, data: bytes) -> None:
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(data)
        draft.rename(path)


def _touched(grown: tuple[Mapping, int] | None) -> Work:
    """Populate what a mapping gained, a piece at a time."""
    if grown is not None:
        mapping, start = grown
        for offset in range(start // PAGE_BYTES * PAGE_BYTES, mapping.size, TOUCH_BYTES):
            mapping.touch(offset, TOUCH_BYTES)
            yield
