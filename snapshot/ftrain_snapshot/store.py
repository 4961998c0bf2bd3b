"""What this node keeps: units, parity and catalogs of three slots, and how a restarted daemon finds them again.

The truth about data is in the regions' own headers and tables, written by workers. The truth about parity
(parities.py) is in the catalog of its slot, replaced as one file once the parity is complete and removed before its
first byte changes.
What is found damaged is noted chunk by chunk: the rest still counts. The last membership is kept, too: it says whose
share the bytes are, and which of them are of another world (worlds.py).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from ftrain_snapshot import arena, records
from ftrain_snapshot.arena import SLOTS
from ftrain_snapshot.damage import Place, bad_data, bad_parity, damages
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.lane import Region
from ftrain_snapshot.lanes import Lanes
from ftrain_snapshot.loop import Work
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    Catalog,
    ParityDescriptor,
    State,
    UnitDescriptor,
    chunk_bytes,
    chunk_count,
    sum_at,
)
from ftrain_snapshot.membership import Membership
from ftrain_snapshot.parities import Kind, Parities
from ftrain_snapshot.placement import Group
from ftrain_snapshot.words import SnapshotId
from ftrain_snapshot.worlds import Seat, Worlds, follow, is_same_share, seat_of

_CATALOG: msgspec.msgpack.Decoder[Catalog] = msgspec.msgpack.Decoder(Catalog)
_WORLDS: msgspec.msgpack.Decoder[Worlds] = msgspec.msgpack.Decoder(Worlds)


class Store:
    """The files in one node's folder. One thread uses it."""

    def __init__(self, node_dir: Path) -> None:
        self.node_dir = node_dir
        self.lanes = Lanes(node_dir)
        """Of any world."""
        self.worlds: Worlds | None = None
        """What was served last, and what is kept of other worlds."""
        self.damaged: dict[SnapshotId, set[Place]] = {}
        """Chunks that were found missing or damaged, and are not repaired yet."""
        self._seat: Seat | None = None
        self._rotations: tuple[int, ...] = ()  # whose parity is kept here
        self._kept: dict[SnapshotId, Seat | None] = {}
        self._parities = Parities(node_dir)
        self._catalogs: dict[int, Catalog] = {}
        self._reserved: dict[int, int] = {}

    @property
    def membership(self) -> Membership | None:
        """The generation that was served last."""
        return self.worlds.membership if self.worlds is not None else None

    @property
    def group(self) -> Group:
        """The group in which this node's bytes are coded. Raises LookupError before there is a membership."""
        if self._seat is None:
            raise LookupError("no membership is known")
        return self._seat.group

    def seat(self, snapshot: SnapshotId) -> Seat | None:
        """As whose share this snapshot is kept here; None: this node has none of it."""
        if snapshot in self._kept:
            return self._kept[snapshot]
        return self._seat if self.worlds is not None and self.worlds.is_ours(snapshot) else None

    # Re-attaching.

    def attach(self) -> Work:
        """Find what an earlier daemon kept. Bytes that are not as the catalogs say are noted as damaged."""
        worlds = records.kept(self.node_dir / "membership", _WORLDS)
        if worlds is None:
            return
        self._belong(worlds)
        for slot in range(SLOTS):
            catalog = records.kept(self._catalog_path(slot), _CATALOG)
            if catalog is not None:
                self._catalogs[slot] = catalog
                self._parities.load(slot, catalog.parity)
        for catalog in list(self._catalogs.values()):
            self.mark_damaged(catalog.snapshot, (yield from bad_parity(catalog, self.parity)))
            if (seat := self.seat(catalog.snapshot)) is None:
                continue
            for unit in catalog.units:
                if unit.position == seat.position and self.lanes.sealed(unit.lane, catalog.snapshot):
                    bad = yield from bad_data(unit, self.lanes.get(unit.lane), seat.group)
                    self.mark_damaged(catalog.snapshot, bad)

    def enter(self, membership: Membership) -> None:
        """A generation begins here: what it cannot need is dropped, unless it only goes on (`resumed`).

        Only while no worker of this node lives.
        """
        same = is_same_share(self.membership, membership)
        worlds = follow(self.worlds, membership)
        if not membership.resumed:
            here = [origin.snapshot for origin in worlds.kept if origin.position >= 0]
            self.drop_newer(membership.restore if same else None, here)
        self._belong(worlds)
        if not same and not membership.resumed:
            self._reserved.clear()
            self._trim()
        records.keep(self.node_dir / "membership", worlds)

    def let_go(self, snapshot: SnapshotId) -> None:
        """A snapshot of another world is not needed any more: its slot is free, and so is parity that only it used."""
        if self.worlds is None or self.worlds.origin(snapshot) is None:
            return
        kept = tuple(origin for origin in self.worlds.kept if origin.snapshot != snapshot)
        worlds = msgspec.structs.replace(self.worlds, kept=kept)
        self._belong(worlds)
        if (catalog := self._catalogs.get(snapshot.slot)) is not None and catalog.snapshot == snapshot:
            self._forget(snapshot.slot)
        self._trim()
        records.keep(self.node_dir / "membership", worlds)

    def _belong(self, worlds: Worlds) -> None:
        self._seat = seat_of(worlds.membership)
        self._rotations = self.group.parity_rotations(worlds.membership.position)
        self._kept = {origin.snapshot: seat_of(origin) for origin in worlds.kept}
        self.worlds = worlds

    # Units.

    def describe(self, lane: int, snapshot: SnapshotId) -> UnitDescriptor | None:
        """The descriptor of this node's own unit, from its region, if it is sealed here."""
        header, region = self.lanes.sealed(lane, snapshot), self.lanes.region(snapshot.slot, lane)
        seat = self.seat(snapshot)
        if header is None or region is None or seat is None:
            return None
        return UnitDescriptor(seat.position, lane, header, region.sums(header.chunks))

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
        seat = self.seat(snapshot)
        if seat is None or stripe < 0 or (lane, rotation, stripe) in self.damaged.get(snapshot, ()):
            return None
        group, position = seat.group, seat.position
        if rotation in group.parity_rotations(position):
            view = self.parity(snapshot, lane, rotation, stripe)
            return None if view is None else (view, self._parities.tables[snapshot.slot][lane, rotation].sums[stripe])
        if rotation not in group.data_rotations(position):
            return None
        region, catalog = self.lanes.region(snapshot.slot, lane), self.catalog(snapshot)
        if region is None:
            return None
        state, header = region.header()
        unit = catalog.unit(position, lane) if catalog is not None else None
        if header is None or header.snapshot != snapshot or (state is not State.SEALED and unit is None):
            return None
        chunk = group.chunk_of(position, rotation, stripe)
        length = chunk_bytes(header.unit_bytes, chunk)
        if length == 0:
            return memoryview(b""), 0
        return region.chunk(chunk, length), sum_at(unit.sums, chunk) if unit is not None else region.sum(chunk)

    # Rebuilding units.

    def prepare(self, unit: UnitDescriptor) -> Generator[None, None, set[Place]]:
        """Make this position's region ready to take what it lacks of a unit: which chunks those are, noted as damaged.

        Afterwards the region is sealed as described, or begun with that header. Raises ArenaTooSmall.
        """
        self.lanes.outline(unit.lane, unit.header.unit_bytes)
        bad = yield from bad_data(unit, self.lanes.get(unit.lane), self.group)
        self.mark_damaged(unit.snapshot, bad)
        region = self.lanes.region(unit.snapshot.slot, unit.lane)
        if region is not None and self.lanes.sealed(unit.lane, unit.snapshot) != unit.header:
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
        if self.lanes.sealed(unit.lane, unit.snapshot) is None:
            region.publish(unit.header.chunks, unit.header.unit_bytes)
            region.seal()

    def _prepared(self, unit: UnitDescriptor) -> Region:
        region = self.lanes.region(unit.snapshot.slot, unit.lane)
        assert region is not None
        return region

    # Memory.

    def reserve(self, lane: int, unit_bytes: int) -> Work:
        """Allocate and touch a lane's homes and tables, and the parity kept here of its like. Raises ArenaTooSmall."""
        size = max(arena.home_bytes(unit_bytes), self._reserved.get(lane, 0))
        wanted = self._reserved | {lane: size}
        needed = arena.required(wanted, self.group.data, self.group.parity)
        allocated = sum(arena.allocated(path) for path in self._files("lane", "table", "parity"))
        allocated -= self._parities.idle_bytes(self._parity_sizes(wanted))
        if needed > (there := allocated + arena.available(self.node_dir)):
            raise ArenaTooSmall(needed, there)
        self._reserved = wanted
        try:
            yield from self.lanes.allocate(lane, size)
            for rotation in self._rotations:
                yield from self._parities.grow((lane, rotation), arena.parity_bytes(size, self.group.data))
        except ArenaTooSmall as error:  # another node of this machine was faster
            raise ArenaTooSmall(needed, allocated + error.available_bytes) from error

    def _parity_sizes(self, homes: Mapping[int, int]) -> dict[Kind, int | None]:
        """How long parity has to be of what is served, by lane and rotation; None: of a lane of unknown length."""
        assert self.membership is not None
        every = ((lane, rotation) for lane in range(self.membership.lanes) for rotation in self._rotations)
        data = self.group.data
        return {kind: arena.parity_bytes(homes[kind[0]], data) if kind[0] in homes else None for kind in every}

    def _trim(self) -> None:
        """Give back parity of another world that nothing refers to any more."""
        self._parities.trim(self._parity_sizes(self._reserved))

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
        """All records of the world that is served, newest first."""
        ours = (catalog for catalog in self._catalogs.values() if catalog.snapshot not in self._kept)
        return sorted(ours, key=lambda catalog: catalog.snapshot, reverse=True)

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

    def drop_newer(self, restore: SnapshotId | None, but: Collection[SnapshotId] = ()) -> None:
        """Forget everything newer than ``restore`` (all, if None), and spare what is named in ``but``."""

        def stays(snapshot: SnapshotId) -> bool:
            return snapshot in but or (restore is not None and snapshot <= restore)

        self.lanes.clear(stays)
        for slot, catalog in list(self._catalogs.items()):
            if not stays(catalog.snapshot):
                self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._catalog_path(slot).unlink(missing_ok=True)
        self._parities.forget(slot)
        self._catalogs.pop(slot, None)
        self.damaged = {s: places for s, places in self.damaged.items() if s.slot != slot}

    # Answers.

    def holdings(self) -> tuple[Holding, ...]:
        """What is here, as the headers say now: of the position served last, and of what is kept of other worlds."""
        if self.membership is None:
            return ()
        lanes = self.membership.lanes
        held: dict[SnapshotId, dict[int, int]] = {}
        for lane, state, header in self.lanes.scan(lanes):
            if state is State.SEALED:
                held.setdefault(header.snapshot, {})[lane] = header.unit_bytes
        for catalog in self._catalogs.values():
            held.setdefault(catalog.snapshot, {})
            if catalog.dropped:
                del held[catalog.snapshot]
        found = []
        for snapshot, units in sorted(held.items()):
            seat, known = self.seat(snapshot), self.catalog(snapshot)
            parity, damage = known.parity if known is not None else (), damages(self.damaged.get(snapshot, ()))
            found.append(seat.holding(snapshot, units, parity, damage, lanes) if seat is not None else None)
        return tuple(holding for holding in found if holding is not None)

    def kept(self) -> tuple[SnapshotId, ...]:
        """Snapshots of other worlds that were not let go yet, whether any of them is here or not."""
        return tuple(self._kept)

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
