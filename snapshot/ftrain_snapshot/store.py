"""What this node keeps: units, parity and catalogs of three slots, and how a restarted daemon finds them again.

The truth about data is in the regions' own headers and tables, written by workers. The truth about parity
(parities.py) is in the catalog of its slot, replaced as one file once the parity is complete and removed before its
first byte changes.
What is found damaged is noted chunk by chunk: the rest still counts. The last membership is kept, too: it says whose
share the bytes are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import msgspec

from ftrain_snapshot import arena, records
from ftrain_snapshot.arena import SLOTS
from ftrain_snapshot.damage import Place, bad_data, bad_parity, damages
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.lanes import Lanes
from ftrain_snapshot.loop import Work
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    Catalog,
    Header,
    ParityDescriptor,
    State,
    UnitDescriptor,
    chunk_bytes,
    chunk_count,
    sum_at,
)
from ftrain_snapshot.messages import DAMAGES_MAX, Holding, Membership, SnapshotId
from ftrain_snapshot.parities import Parities
from ftrain_snapshot.placement import Group, group_of

_CATALOG: msgspec.msgpack.Decoder[Catalog] = msgspec.msgpack.Decoder(Catalog)
_MEMBERSHIP: msgspec.msgpack.Decoder[Membership] = msgspec.msgpack.Decoder(Membership)


class Store:
    """The files in one node's folder. One thread uses it."""

    def __init__(self, node_dir: Path) -> None:
        self.node_dir = node_dir
        self.membership: Membership | None = None
        self.damaged: dict[SnapshotId, set[Place]] = {}
        """Chunks that were found missing or damaged, and are not repaired yet."""
        self._group: Group | None = None
        self._lanes = Lanes(node_dir)
        self._parities = Parities(node_dir)
        self._catalogs: dict[int, Catalog] = {}
        self._reserved: dict[int, int] = {}

    @property
    def group(self) -> Group:
        """The group in which this node's bytes are coded. Raises LookupError before there is a membership."""
        if self._group is None:
            raise LookupError("no membership is known")
        return self._group

    # Re-attaching.

    def attach(self) -> Work:
        """Find what an earlier daemon kept. Bytes that are not as the catalogs say are noted as damaged."""
        membership = records.kept(self.node_dir / "membership", _MEMBERSHIP)
        if membership is None:
            return
        self._belong(membership)
        for slot in range(SLOTS):
            catalog = records.kept(self._catalog_path(slot), _CATALOG)
            if catalog is not None:
                self._catalogs[slot] = catalog
                self._parities.load(slot, catalog.parity)
        for catalog in list(self._catalogs.values()):
            self.mark_damaged(catalog.snapshot, (yield from bad_parity(catalog, self.parity)))
            for lane in range(catalog.lanes):
                unit = catalog.unit(membership.position, lane)
                if unit is not None and self.sealed(lane, catalog.snapshot):
                    self.mark_damaged(catalog.snapshot, (yield from bad_data(unit, self.lane(lane), self.group)))

    def remember(self, membership: Membership) -> None:
        """Serve it from now on, and keep it for a daemon that is started here after this one."""
        self._belong(membership)
        records.keep(self.node_dir / "membership", membership)

    def _belong(self, membership: Membership) -> None:
        self._group = group_of(membership.position, membership.grouping, membership.parity)
        self.membership = membership

    @property
    def _position(self) -> int:
        assert self.membership is not None
        return self.membership.position

    # Units.

    def lane(self, lane: int) -> Lane | None:
        """The lane's memory, or None if none has been allocated."""
        return self._lanes.get(lane)

    def region(self, slot: int, lane: int) -> Region | None:
        """One slot of it."""
        known = self._lanes.get(lane)
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

    def describe(self, lane: int, snapshot: SnapshotId) -> UnitDescriptor | None:
        """The descriptor of this node's own unit, from its region, if it is sealed here."""
        header, region = self.sealed(lane, snapshot), self.region(snapshot.slot, lane)
        if header is None or region is None:
            return None
        return UnitDescriptor(self._position, lane, header, region.sums(header.chunks))

    # What is damaged.

    def mark_damaged(self, snapshot: SnapshotId, places: Iterable[Place]) -> None:
        """These chunks must not be used."""
        found = set(places)
        if found:
            self.damaged.setdefault(snapshot, set()).update(found)

    def mark_repaired(self, snapshot: SnapshotId, place: Place) -> None:
        """The chunk's bytes are right again."""
        places = self.damaged.get(snapshot, set())
        places.discard(place)
        if not places:
            self.damaged.pop(snapshot, None)

    def my_part(self, snapshot: SnapshotId, lane: int, rotation: int, stripe: int) -> tuple[memoryview, int] | None:
        """This node's chunk of a stripe, in place, and its checksum; an empty view where its unit is shorter.

        None: it is not here, or known to be damaged.
        """
        if stripe < 0 or (lane, rotation, stripe) in self.damaged.get(snapshot, ()):
            return None
        if rotation in self.group.parity_rotations(self._position):
            view = self.parity(snapshot, lane, rotation, stripe)
            return None if view is None else (view, self._parities.tables[snapshot.slot][lane, rotation].sums[stripe])
        if rotation not in self.group.data_rotations(self._position):
            return None
        region, catalog = self.region(snapshot.slot, lane), self.catalog(snapshot)
        if region is None:
            return None
        state, header = region.header()
        unit = catalog.unit(self._position, lane) if catalog is not None else None
        if header is None or header.snapshot != snapshot or (state is not State.SEALED and unit is None):
            return None
        chunk = self.group.chunk_of(self._position, rotation, stripe)
        length = chunk_bytes(header.unit_bytes, chunk)
        if length == 0:
            return memoryview(b""), 0
        return region.chunk(chunk, length), sum_at(unit.sums, chunk) if unit is not None else region.sum(chunk)

    # Rebuilding units.

    def prepare(self, unit: UnitDescriptor) -> Generator[None, None, set[Place]]:
        """Make this position's region ready to take what it lacks of a unit: which chunks those are, noted as damaged.

        Afterwards the region is sealed as described, or begun with that header. Raises ArenaTooSmall.
        """
        self._lanes.outline(unit.lane, unit.header.unit_bytes)
        bad = yield from bad_data(unit, self.lane(unit.lane), self.group)
        self.mark_damaged(unit.snapshot, bad)
        region = self.region(unit.snapshot.slot, unit.lane)
        if region is not None and self.sealed(unit.lane, unit.snapshot) != unit.header:
            region.begin(unit.header)
        return bad

    def put_data(self, unit: UnitDescriptor, chunk: int, data: memoryview) -> None:
        """Write a prepared unit's chunk. Raises ArenaTooSmall."""
        self._prepared(unit).mend(chunk, sum_at(unit.sums, chunk), data)

    def seal_unit(self, unit: UnitDescriptor) -> None:
        """All chunks of a prepared unit are right: it counts as sealed here."""
        region = self._prepared(unit)
        for chunk in range(unit.header.chunks):
            region.record(chunk, sum_at(unit.sums, chunk))
        if self.sealed(unit.lane, unit.snapshot) is None:
            region.publish(unit.header.chunks, unit.header.unit_bytes)
            region.seal()

    def _prepared(self, unit: UnitDescriptor) -> Region:
        region = self.region(unit.snapshot.slot, unit.lane)
        assert region is not None
        return region

    # Memory.

    def reserve(self, lane: int, unit_bytes: int) -> Work:
        """Allocate and touch a lane's homes and tables, and the parity kept here of its like. Raises ArenaTooSmall."""
        size = max(arena.home_bytes(unit_bytes), self._reserved.get(lane, 0))
        wanted = self._reserved | {lane: size}
        needed = arena.required(wanted, self.group.data, self.group.parity)
        allocated = sum(arena.allocated(path) for path in self._files("lane", "table", "parity"))
        if needed > (there := allocated + arena.available(self.node_dir)):
            raise ArenaTooSmall(needed, there)
        self._reserved = wanted
        try:
            yield from self._lanes.allocate(lane, size)
            for rotation in self.group.parity_rotations(self._position):
                yield from self._parities.grow((lane, rotation), arena.parity_bytes(size, self.group.data))
        except ArenaTooSmall as error:  # another node of this machine was faster
            raise ArenaTooSmall(needed, allocated + error.available_bytes) from error

    # Parity.

    def parity(self, snapshot: SnapshotId, lane: int, rotation: int, stripe: int) -> memoryview | None:
        """A chunk of parity on record, in place; None if there is none."""
        catalog = self.catalog(snapshot)
        described = catalog.parity_of(lane, rotation) if catalog is not None else None
        if described is None:
            return None
        length = chunk_bytes(described.parity_bytes, stripe)
        view = self._parities.view(snapshot.slot, (lane, rotation), stripe)
        return view[:length] if view is not None and 0 < length <= len(view) else None

    def place_parity(
        self, snapshot: SnapshotId, lane: int, rotation: int, stripe: int, length: int = CHUNK_BYTES
    ) -> memoryview:
        """Where a stripe's parity is to be written: a home that no other slot uses, its own last one if it may be.

        The view is as long as there is room, ``length`` at least. Raises ArenaTooSmall.
        """
        return self._parities.place(snapshot.slot, (lane, rotation), stripe, length)

    def record_parity(self, snapshot: SnapshotId, lane: int, rotation: int, stripe: int, sum_: int) -> None:
        """The bytes of a placed stripe are there."""
        self._parities.tables[snapshot.slot][lane, rotation].sums[stripe] = sum_

    def keep_parity(self, snapshot: SnapshotId, lane: int, rotation: int, stripe: int, reference: SnapshotId) -> bool:
        """Take over the stripe's parity from another snapshot; False if that has none that is sound."""
        damaged = (lane, rotation, stripe) in self.damaged.get(reference, ())
        if damaged or self.parity(reference, lane, rotation, stripe) is None:
            return False
        self._parities.keep(snapshot.slot, (lane, rotation), stripe, reference.slot)
        return True

    def describe_parity(
        self, snapshot: SnapshotId, lane: int, rotation: int, generator: str, parity_bytes: int
    ) -> ParityDescriptor:
        """What goes on record once all its stripes are there."""
        table = self._parities.table(snapshot.slot, (lane, rotation))
        stripes = chunk_count(parity_bytes)
        return ParityDescriptor(
            lane, rotation, generator, parity_bytes, table.sums[:stripes].tobytes(), bytes(table.homes[:stripes])
        )

    # Catalogs.

    def catalog(self, snapshot: SnapshotId) -> Catalog | None:
        """The record of this very snapshot."""
        catalog = self._catalogs.get(snapshot.slot)
        return catalog if catalog is not None and catalog.snapshot == snapshot else None

    def catalogs(self) -> list[Catalog]:
        """All records, newest first."""
        return sorted(self._catalogs.values(), key=lambda catalog: catalog.snapshot, reverse=True)

    def begin(self, snapshot: SnapshotId, lanes: int) -> Catalog | None:
        """The record to fill in; what the slot held before is over. None if the slot holds something newer."""
        catalog = self._catalogs.get(snapshot.slot)
        if catalog is not None and catalog.snapshot == snapshot:
            return catalog
        if not 0 <= snapshot.slot < SLOTS or (catalog is not None and catalog.snapshot > snapshot):
            return None
        self._forget(snapshot.slot)
        self._catalogs[snapshot.slot] = catalog = Catalog(snapshot, lanes, [], [])
        return catalog

    def save(self, catalog: Catalog) -> None:
        """Keep the record for a daemon that is started here after this one."""
        records.keep(self._catalog_path(catalog.snapshot.slot), catalog)

    def drop(self, snapshot: SnapshotId, lanes: int) -> None:
        """The job gave it up: it is not restored from here, also after a restart."""
        catalog = self.begin(snapshot, lanes)
        if catalog is not None and not catalog.dropped:
            catalog.dropped, catalog.parity, catalog.units = True, [], []
            self._parities.forget(snapshot.slot)
            self.damaged.pop(snapshot, None)
            self.save(catalog)

    def drop_newer(self, restore: SnapshotId | None) -> None:
        """Forget everything newer than ``restore`` (all, if None). Only while no worker of this node lives."""
        for path in self.node_dir.glob("slot0.lane*"):
            lane = self.lane(int(path.name.removeprefix("slot0.lane")))
            for region in lane.regions if lane is not None else ():
                _, header = region.header()
                if header is None or restore is None or header.snapshot > restore:
                    region.clear()
        for slot, catalog in list(self._catalogs.items()):
            if restore is None or catalog.snapshot > restore:
                self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._catalog_path(slot).unlink(missing_ok=True)
        self._parities.forget(slot)
        self._catalogs.pop(slot, None)
        self.damaged = {s: places for s, places in self.damaged.items() if s.slot != slot}

    # Answers.

    def holdings(self) -> tuple[Holding, ...]:
        """What is here of the position served last, as the headers say now."""
        if self.membership is None:
            return ()
        position, lanes = self.membership.position, self.membership.lanes
        held: dict[SnapshotId, dict[int, int]] = {}
        for lane, state, header in self.scan(lanes):
            if state is State.SEALED:
                held.setdefault(header.snapshot, {})[lane] = header.unit_bytes
        for catalog in self._catalogs.values():
            held.setdefault(catalog.snapshot, {})
            if catalog.dropped:
                del held[catalog.snapshot]
        result = []
        for snapshot, units in sorted(held.items()):
            known = self.catalog(snapshot)
            stored = known.parity if known is not None else []
            wanted = lanes * len(self.group.parity_rotations(position))
            damage = damages(self.damaged.get(snapshot, ()))
            data, kept = len(units) == lanes, 0 < wanted == len(stored)
            if (data or kept) and len(damage) <= DAMAGES_MAX:
                sizes = sum(units.values()), sum(p.parity_bytes for p in stored)
                result.append(Holding(snapshot, position, data, kept, *sizes, damage))
        return tuple(result)

    def remove_files(self) -> None:
        """Remove everything of this class from the folder."""
        names = ("control.new", "control", "membership", "membership.new")
        files = self._files("lane", "table", "parity", "catalog")
        for path in [*files, *(self.node_dir / name for name in names)]:
            path.unlink(missing_ok=True)

    def _files(self, *kinds: str) -> Iterator[Path]:
        return (path for kind in kinds for path in self.node_dir.glob(f"slot*.{kind}*"))

    def _catalog_path(self, slot: int) -> Path:
        return self.node_dir / f"slot{slot}.catalog"
