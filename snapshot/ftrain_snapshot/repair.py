"""Brings back what a node lacks of the snapshot that its generation starts from.

    lanes that are not sealed: which chunks are there?
      └─ tell the group (Restoring), and hear what the others have
           ├─ meanwhile check own data, then own parity, against their checksums; tell again if any are damaged
           ├─ own data, then own parity: rebuilt chunk by chunk as sources can be had (rebuild.py)
           └─ data whole ──> restored (training goes on)          parity whole ──> PositionStored

Bad is anything missing or damaged, chunk by chunk: several nodes with damage in different stripes all recover. A sealed
lane counts as sound until it is found not to be; who fetches from it checks what comes, so nobody need wait for that.
A lost connection cancels what hung on it; it is planned again with those that remain, or when the peer is back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from ftrain_snapshot.damage import Place, bad_parity, damages
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.gather import Gather
from ftrain_snapshot.inventory import DAMAGES_MAX, Damage
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Task, Timer, Work
from ftrain_snapshot.manifest import NO_SNAPSHOT, Catalog, UnitDescriptor
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild import Rebuild
from ftrain_snapshot.rebuild_plan import STRIPES_MAX
from ftrain_snapshot.wire import PositionSealed, PositionStored, Restoring
from ftrain_snapshot.words import SnapshotId

PEER_TIMEOUT_SECONDS = 15.0
"""How long to wait for the others of the group before saying that it cannot be done."""
PART_BYTES = 1 << 20
"""So many bytes of checksums are told in one message: those of 128 GiB."""


class Repair:
    """One generation's restoring, on one node."""

    def __init__(self, node: Node, changed: Callable[[], None]) -> None:
        self.restored = False
        """All own data is in place; training may go on."""
        self.stored = False
        """The parity kept here is in place, too: this position is as good as before."""
        self.failure = ""
        self._loop, self._store, self._links, self._tell_gate = node.loop, node.store, node.links, node.tell_gate
        self._group, self._position, self._codec = node.group, node.position, node.codec
        self._membership = node.membership
        self._snapshot = node.membership.restore or NO_SNAPSHOT
        self._changed = changed
        self._told = False  # what is here is known well enough to be told
        self._checked = False  # all own data that is here has been read
        self._parity_checked = False
        self._unknown: set[int] = set()
        """Lanes of which it is not known yet what they lack."""
        self._preparing: set[int] = set()
        self._heard: set[int] = set()
        self._introduced: set[int] = set()
        self._tasks: list[Task] = []
        self._timer: Timer | None = None
        self.gather = Gather(node)
        """All fetching of what is lost: for this, for the scrub and for degraded reads."""
        self._rebuild = Rebuild(node, self.gather, self._snapshot, self._able, self._on_progress)
        self._losses = self._rebuild.losses

    @property
    def under_way(self) -> bool:
        """Bytes are still being brought back, or checked."""
        return not (self.restored and (self.stored or self._membership.restore is None or not self._group.parity))

    @property
    def repaired(self) -> int:
        """Chunks brought back."""
        return self._losses.repaired

    def start(self, *, under_way: bool) -> None:
        """Check, and rebuild what is bad. ``under_way``: snapshots of this generation exist here: it is past that."""
        if self._membership.restore is None or under_way:
            self.restored = self.stored = True
            return
        self._timer = self._loop.later(PEER_TIMEOUT_SECONDS, self._too_late)
        self._spawn(self._check())

    def close(self) -> None:
        """The generation is over."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._rebuild.close()
        self.gather.close()

    def _able(self) -> set[int]:
        return self._heard.intersection(self._links)

    def take_over(self, snapshot: SnapshotId, places: set[Place]) -> bool:
        """Others found these chunks damaged: whether they are brought back from here, as while it is under way."""
        if snapshot != self._membership.restore or not self.under_way:
            return False
        self._losses.single |= places
        self._rebuild.plan()
        return True

    # What is here.

    def _check(self) -> Work:
        """See what is here; what is not sealed before anything is told, the rest afterwards."""
        catalog = self._store.begin(self._snapshot, self._membership.lanes)
        if catalog is None or catalog.dropped:
            self._fail("its slot has been given to a newer one here")
            return
        sealed: list[UnitDescriptor] = []
        torn: list[UnitDescriptor] = []
        for lane in range(self._membership.lanes):
            unit = catalog.unit(self._position, lane) or self._store.describe(lane, self._snapshot)
            if unit is None:
                self._unknown.add(lane)
                self._rebuild.parity_waits = True
                continue
            catalog.put(unit)
            is_whole = self._store.lanes.sealed(lane, self._snapshot) == unit.header
            (sealed if is_whole else torn).append(unit)
        for unit in torn:
            yield from self._prepare(unit, single=False)
        self._told = True
        self._claim_parity(catalog)
        self._tell()
        for unit in sealed:
            yield from self._prepare(unit, single=True)
        self._checked = True
        self._take_stock()
        yield  # who waits for the data hears of it first
        is_sound = yield from self._check_parity(catalog)
        self._parity_checked = True
        if is_sound:
            self._on_progress()
        else:
            self._take_stock()

    def _take_stock(self) -> None:
        """More is known of what is here: let others know what is bad, and go on with what is not."""
        if places := self._store.damaged.get(self._snapshot):
            log("repair", version=self._snapshot.version, position=self._position, chunks=len(places))
            self._tell()
        for lane in range(self._membership.lanes):
            self._rebuild.settle(lane)
        self._on_progress()
        self._rebuild.plan()

    def _prepare(self, unit: UnitDescriptor, *, single: bool) -> Work:
        """Note what the lane lacks. The record goes first: it tells torn from whole after a restart."""
        catalog = self._store.catalog(self._snapshot)
        if catalog is None:
            return
        self._store.save(catalog)
        try:
            bad = yield from self._store.prepare(unit)
        except ArenaTooSmall as error:
            self._fail(str(error))
            return
        if single:
            self._losses.single |= bad
            for lane, rotation, stripe in sorted(bad):
                log("chunk_damaged", version=self._snapshot.version, lane=lane, rotation=rotation, stripe=stripe)
        self._unknown.discard(unit.lane)
        self._rebuild.parity_waits = bool(self._unknown)

    def _check_parity(self, catalog: Catalog) -> Generator[None, None, bool]:
        """Note what is damaged of the parity on record; whether there is none."""
        bad = yield from bad_parity(catalog, self._store.parity)
        self._losses.single |= bad
        self._store.mark_damaged(self._snapshot, bad)
        self._losses.claimed |= {(lane, rotation) for lane, rotation, _ in bad}
        return not bad

    def _claim_parity(self, catalog: Catalog) -> None:
        """Note all parity that should be here and is not on record, where its length is known."""
        for lane, rotation in self._missing_parity(catalog):
            shape = self._losses.shape(lane)
            if shape is not None and (lane, rotation) not in self._losses.claimed:
                self._losses.claimed.add((lane, rotation))
                stripes = range(shape.stripes(self._position, rotation))
                self._store.mark_damaged(self._snapshot, ((lane, rotation, stripe) for stripe in stripes))
                self._rebuild.settle(lane)  # there may be nothing to keep

    def _missing_parity(self, catalog: Catalog) -> list[tuple[int, int]]:
        rotations = self._group.parity_rotations(self._position)
        every = ((lane, rotation) for lane in range(self._membership.lanes) for rotation in rotations)
        return [each for each in every if catalog.parity_of(*each) is None]

    def _bad(self, catalog: Catalog) -> tuple[Damage, ...]:
        """All that is not here, the ends of lanes and parity whose length is not known included."""
        rotations = self._group.data_rotations(self._position)
        whole = {(lane, rotation) for lane in self._unknown for rotation in rotations}
        whole |= {each for each in self._missing_parity(catalog) if each not in self._losses.claimed}
        places: set[Place] = self._store.damaged.get(self._snapshot, set())
        single = damages(place for place in places if place[:2] not in whole)
        if len(single) + len(whole) > DAMAGES_MAX:  # too many to tell: rather too much than none of it
            single, whole = (), whole | {place[:2] for place in places}
        return (*single, *(Damage(lane, rotation, 0, STRIPES_MAX) for lane, rotation in sorted(whole)))

    # What the others have.

    def _tell(self) -> None:
        for member in self._group.members:
            if member in self._links:
                self._tell_one(member)

    def on_link(self, position: int) -> None:
        """A member of the group is connected: tell it what is here."""
        self._introduced.discard(position)
        self._rebuild.sources.forgive(position)
        self._tell_one(position)

    def _tell_one(self, position: int) -> None:
        catalog = self._store.catalog(self._snapshot)
        if not self._told or catalog is None:
            return
        units = () if position in self._introduced else tuple(catalog.units)
        self._introduced.add(position)
        bad, parts = self._bad(catalog), in_parts(units)
        for number, part in enumerate(parts, start=1):
            self._links[position].send(Restoring(self._snapshot, bad, part, more=number < len(parts)))

    def on_lost(self, position: int) -> None:
        """A member's connection is gone, and with it what it was sending."""
        self.gather.on_lost(position)
        self._heard.discard(position)
        self._introduced.discard(position)

    def on_restoring(self, position: int, state: Restoring) -> None:
        """A member says what it has."""
        catalog = self._store.catalog(self._snapshot)
        if state.snapshot != self._snapshot or catalog is None:
            return
        if not state.more:
            self._heard.add(position)
        self._rebuild.sources.hear(position, state.bad)
        for unit in state.units:
            sound = unit.snapshot == self._snapshot and len(unit.sums) == 8 * unit.header.chunks
            ours = unit.lane in range(self._membership.lanes) and unit.position in self._group.members
            if sound and ours and catalog.unit(unit.position, unit.lane) is None:
                catalog.put(unit)
        if self._told and self.under_way:  # what is found later is the scrub's
            self._learn(catalog)
            self._on_progress()
            self._rebuild.plan()

    def _learn(self, catalog: Catalog) -> None:
        """What can be noted as missing now that more units are known."""
        self._claim_parity(catalog)
        lanes = sorted(self._unknown - self._preparing)
        learnt = [unit for lane in lanes if (unit := catalog.unit(self._position, lane)) is not None]
        self._preparing.update(unit.lane for unit in learnt)  # all, before the first is taken up and judged by
        for unit in learnt:
            self._spawn(self._take_up(unit))

    def _take_up(self, unit: UnitDescriptor) -> Work:
        yield from self._prepare(unit, single=False)
        chunks = len(self._losses.data_places())
        log("repair", version=self._snapshot.version, position=self._position, chunks=chunks)
        self._rebuild.settle(unit.lane)
        self._on_progress()
        self._rebuild.plan()

    # What follows.

    def _on_progress(self) -> None:
        """Own data may be whole now, or own parity, or it may be clear that they never will be."""
        catalog = self._store.catalog(self._snapshot)
        if catalog is None or not self._checked:
            return
        if not self.restored and not self._unknown and not self._losses.data_places():
            self.restored, self.failure = True, ""
            received_bytes, generation = self.gather.received_bytes, self._membership.generation
            log("restored", version=self._snapshot.version, generation=generation, received_bytes=received_bytes)
            self._tell_gate(PositionSealed(self._snapshot, ()))
            self._tell()
            self._changed()
        if self._group.parity and self.restored and not self.stored and self._is_stored(catalog):
            self.stored = True
            self._tell_gate(PositionStored(self._snapshot))
            self._tell()
        if not self.restored and (reason := self._impossible()):
            self._fail(reason)

    def _is_stored(self, catalog: Catalog) -> bool:
        whole = not self._store.damaged.get(self._snapshot)
        return self._parity_checked and whole and not self._missing_parity(catalog)

    def _impossible(self) -> str:
        if self._codec is None and (self._unknown or self._losses.data_places()):
            return "there is no parity to rebuild it from"
        if reason := self._rebuild.impossible():
            return self._rebuild.reason or reason
        everyone = len(self._heard) == len(self._group.members) - 1
        if everyone and (lost := self._unknown - self._preparing):
            return f"nobody knows the checksums of positions [{self._position}], lane {min(lost)}"
        return self._losses.unknown() if everyone else ""

    def _too_late(self) -> None:
        if not self.restored:
            away = [p for p in self._group.members if p != self._position and p not in self._heard]
            told = f"positions {away} did not say what they hold" if away else "its bytes did not arrive"
            self._fail(f"{told} within {PEER_TIMEOUT_SECONDS:g} s")

    def _fail(self, reason: str) -> None:
        """Say why it cannot be done now. It is done all the same if that changes."""
        text = f"snapshot {self._snapshot.version} cannot be restored on position {self._position}: {reason}"
        if not self.restored and text != self.failure:
            log("repair_failed", version=self._snapshot.version, position=self._position, reason=reason)
            self.failure = text
            self._changed()

    def _spawn(self, work: Work) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._loop.spawn(work))


def in_parts(units: Sequence[UnitDescriptor]) -> list[tuple[UnitDescriptor, ...]]:
    """As many at a time as go into a message; at least one part."""
    parts: list[tuple[UnitDescriptor, ...]] = [()]
    size = 0
    for unit in units:
        size += len(unit.sums)
        if parts[-1] and size > PART_BYTES:
            parts.append(())
            size = len(unit.sums)
        parts[-1] = (*parts[-1], unit)
    return parts
