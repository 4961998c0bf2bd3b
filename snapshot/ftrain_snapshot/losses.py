"""What of one snapshot is damaged or missing on this node, and what is done with a chunk of it that is back.

The store has noted what is lost; each chunk that is back is taken off that list, so that there is one truth. A lane's
data is sealed, and parity goes on record, when nothing more of it is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto

from ftrain_snapshot.damage import Place, damages
from ftrain_snapshot.log import log
from ftrain_snapshot.manifest import Catalog, UnitDescriptor, checksum, sum_at
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild_plan import Shape, Sight, impossible
from ftrain_snapshot.rebuild_sources import Sources
from ftrain_snapshot.words import SnapshotId


class Put(Enum):
    """What came of bytes that were to be put where they belong."""

    DONE = auto()
    WRONG = auto()
    """They do not have the checksum of the lost ones."""
    UNWANTED = auto()
    """The snapshot, or its place here, was given to another."""


class Losses:
    """One snapshot's, on one node; first its own data, then the parity that it keeps."""

    def __init__(self, node: Node, snapshot: SnapshotId) -> None:
        self.repaired = 0
        """Chunks that are back."""
        self.single: set[Place] = set()
        """Chunks of otherwise sound lanes: their repair is an event each."""
        self.claimed: set[tuple[int, int]] = set()
        """(lane, rotation) of parity that is made here anew: it goes on record when it is complete."""
        self._store, self._group, self._position = node.store, node.group, node.position
        self._data_rotations = frozenset(node.group.data_rotations(node.position))
        self._generator = node.codec.generator if node.codec is not None else ""
        self._snapshot = snapshot

    # What is known.

    def places(self) -> set[Place]:
        """All that is not back yet."""
        return self._store.damaged.get(self._snapshot, set())

    def data_places(self) -> set[Place]:
        """Own data that is not back yet."""
        return {place for place in self.places() if self.is_data(place[1])}

    def parity_places(self) -> set[Place]:
        """Own parity that is not back yet."""
        return self.places() - self.data_places()

    def is_data(self, rotation: int) -> bool:
        """Whether this node has data, and no parity, of that rotation."""
        return rotation in self._data_rotations

    def catalog(self) -> Catalog | None:
        """The snapshot's record, while it is still kept here."""
        catalog = self._store.catalog(self._snapshot)
        return catalog if catalog is not None and not catalog.dropped else None

    def units(self, lane: int) -> dict[int, UnitDescriptor]:
        """What is known of the members' units, by position."""
        catalog = self._store.catalog(self._snapshot)
        units = catalog.units if catalog is not None else []
        return {u.position: u for u in units if u.lane == lane and u.position in self._group.members}

    def shape(self, lane: int) -> Shape | None:
        """The lane's stripes, once the units of all members are known."""
        units = self.units(lane)
        if len(units) < len(self._group.members):
            return None
        return Shape(self._group, {p: unit.header.unit_bytes for p, unit in units.items()})

    def unknown(self) -> str:
        """Which members' units nobody has described, of lanes that are to be rebuilt; empty if none."""
        for lane in sorted({place[0] for place in self.places()}):
            if missing := sorted(set(self._group.members) - set(self.units(lane))):
                return f"nobody knows the checksums of positions {missing}, lane {lane}"
        return ""

    def sight(self, sources: Sources, able: Collection[int]) -> Sight:
        """What a plan is made from; ``able``: which members can be asked now."""
        shapes = {lane: self.shape(lane) for lane in {place[0] for place in self.places()}}
        known = {lane: shape for lane, shape in shapes.items() if shape is not None}
        return Sight(self._generator, known, sources.bad(), sources.answering(able) - {self._position})

    def impossible(self, sight: Sight) -> str:
        """Why own data can never be rebuilt from what is known; empty if it may be."""
        places = damages(self.data_places())
        return impossible(sight, self._position, [damage for damage in places if damage.lane in sight.shapes])

    # What is back.

    def put(self, place: Place, units: Mapping[int, UnitDescriptor], data: memoryview) -> Put:
        """Put rebuilt bytes where they belong, if they are right. ``units``: the members' of that lane.

        Raises:
            ArenaTooSmall: there is no room for them.
        """
        lane, rotation, stripe = place
        if self.catalog() is None:
            return Put.UNWANTED
        total = checksum(data)
        if self.is_data(rotation):
            unit, chunk = units[self._position], self._group.chunk_of(self._position, rotation, stripe)
            if total != sum_at(unit.sums, chunk):
                return Put.WRONG
            if not self._is_ready(unit):
                return Put.UNWANTED
            self._store.put_data(unit, chunk, data)
        else:
            self.claimed.add((lane, rotation))
            self._store.place_parity(self._snapshot, lane, rotation, stripe, len(data))[: len(data)] = data
            self._store.record_parity(self._snapshot, lane, rotation, stripe, total)
        self._store.mark_repaired(self._snapshot, place)
        self.repaired += 1
        if place in self.single:
            self.single.discard(place)
            self._say_repaired(place)
        return Put.DONE

    def _is_ready(self, unit: UnitDescriptor) -> bool:
        """The region is this snapshot's: it was prepared, and has not been given to another."""
        region = self._store.lanes.region(unit.snapshot.slot, unit.lane)
        return region is not None and region.header()[1] == unit.header

    def _say_repaired(self, place: Place) -> None:
        lane, rotation, stripe = place
        fields: dict[str, object] = {"version": self._snapshot.version, "position": self._position, "lane": lane}
        if self.is_data(rotation):
            fields["chunk"] = self._group.chunk_of(self._position, rotation, stripe)
        else:
            fields |= {"rotation": rotation, "stripe": stripe}
        log("chunk_repaired", **fields)

    def settle(self, lane: int) -> bool:
        """Seal the lane if all its data is right; put on record what of its parity is complete.

        Whether anything of that is new.
        """
        catalog, shape = self.catalog(), self.shape(lane)
        if catalog is None:
            return False
        left = {place[1] for place in self.places() if place[0] == lane}
        unit, saves = catalog.unit(self._position, lane), False
        is_whole = unit is not None and not left.intersection(self._data_rotations)
        is_open = self._store.lanes.sealed(lane, self._snapshot) is None
        if unit is not None and is_whole and is_open and self._is_ready(unit):
            self._store.seal_unit(unit)
            saves = True
        for rotation in self._group.parity_rotations(self._position):
            if rotation in left or (lane, rotation) not in self.claimed or shape is None or not self._generator:
                continue
            described = self._store.describe_parity(
                self._snapshot, lane, rotation, self._generator, shape.parity_bytes(rotation)
            )
            if catalog.parity_of(lane, rotation) != described:
                catalog.put_parity(described)
                saves = True
        if saves:
            self._store.save(catalog)
        return saves
