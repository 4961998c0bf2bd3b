"""From sealed to protected: streams this node's segments to the holders of their parity, and makes its own.

    lane sealed ──> checksum and send each chunk ──> describe the unit to the group
                                                       │ all lanes: PositionSealed ──> gate
    chunks and descriptions of the others ──> fold ──> all there: checksums, catalog
                                                       │ PositionStored ──> gate

One snapshot is in flight at a time (ledger.py), so the queues hold at most this node's state, as views.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, ProtocolError
from ftrain_snapshot.fold import Fold
from ftrain_snapshot.loop import Loop, Task, Work
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    Catalog,
    Header,
    ParityDescriptor,
    UnitDescriptor,
    checksum,
)
from ftrain_snapshot.messages import Membership, SnapshotId
from ftrain_snapshot.placement import Group, segment_spans
from ftrain_snapshot.store import SLICE_BYTES, Store, sums_of
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Abandon, Chunk, Describe, PeerMessage, PositionSealed, PositionStored

GROWTH_BYTES_MAX = 64 << 20
"""How far ahead parity grows at once, where another node's lanes are longer than what was reserved here."""


class Assembly:
    """What this node collects of one snapshot."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.folds: dict[int, Fold] = {}
        self.digests: dict[int, int] = {}
        self.finishing = bool(catalog.parity)  # a restarted daemon had it complete already
        self.failed = False


class Protect:
    """One generation's protecting, on one node."""

    def __init__(
        self,
        loop: Loop,
        store: Store,
        membership: Membership,
        group: Group,
        codec: Codec | None,
        links: Mapping[int, Connection],
        tell_gate: Callable[[PeerMessage], None],
    ) -> None:
        self.taken = 0
        """Snapshots begun in this generation."""
        self._newest_taken = -1
        self._loop = loop
        self._store = store
        self._membership = membership
        self._position = membership.position
        self._group = group
        self._codec = codec
        self._links = links
        self._tell_gate = tell_gate
        self._assemblies: dict[int, Assembly] = {}
        self._newest_sealed: dict[int, int] = {}
        self._tasks: list[Task] = []

    def close(self) -> None:
        """The generation is over."""
        for task in self._tasks:
            task.cancel()

    # This node's own lanes.

    def adopt(self) -> None:
        """Take note of what is sealed already, without streaming it: this daemon was restarted meanwhile."""
        for lane, header in self._sealed_here():
            self._newest_sealed[lane] = max(header.snapshot.version, self._newest_sealed.get(lane, -1))

    def scan(self) -> None:
        """Find lanes that were sealed without a word (their worker died in between)."""
        for lane, header in sorted(self._sealed_here(), key=lambda item: item[1].snapshot):
            self.sealed(lane, header.snapshot)

    def _sealed_here(self) -> list[tuple[int, Header]]:
        generation, lanes = self._membership.generation, self._membership.lanes
        found = [(lane, h) for lane, _, h in self._store.scan(lanes) if h.snapshot.generation == generation]
        return [(lane, h) for lane, h in found if self._store.sealed(lane, h.snapshot)]

    def sealed(self, lane: int, snapshot: SnapshotId) -> None:
        """A lane here is sealed, as its header confirms: stream it. Repeated or stale notices do nothing."""
        header = self._store.sealed(lane, snapshot)
        newest = self._newest_sealed.get(lane, -1)
        if header is None or not self._belongs(lane, snapshot) or snapshot.version <= newest:
            return
        assembly = self._assembly(snapshot)
        if assembly is None:
            return
        self._newest_sealed[lane] = snapshot.version
        if snapshot.version > self._newest_taken:
            self._newest_taken = snapshot.version
            self.taken += 1
        assembly.digests[lane] = header.digest
        self._spawn(self._stream(assembly, lane, header))
        if len(assembly.digests) == self._membership.lanes:
            digests = tuple(assembly.digests[i] for i in range(self._membership.lanes))
            self._tell_gate(PositionSealed(snapshot, digests))

    def _stream(self, assembly: Assembly, lane: int, header: Header) -> Work:
        """Checksum and queue the unit, chunk by chunk over all segments, so that all holders begin at once."""
        snapshot, region = header.snapshot, self._store.region(header.snapshot.slot, lane)
        if region is None:
            return
        unit = region.unit(header.unit_bytes)
        spans = segment_spans(len(unit), self._group.segments)
        sums: list[list[int]] = [[] for _ in spans]
        done = 0
        for offset in range(0, spans[0][1], CHUNK_BYTES):
            for segment, rotation in enumerate(self._group.data_rotations(self._position)):
                start, length = spans[segment]
                body = unit[start + offset : start + min(length, offset + CHUNK_BYTES)]
                if not body:
                    continue
                total = checksum(body)
                sums[segment].append(total)
                for holder in self._group.parity_members(rotation):
                    if (link := self._links.get(holder)) is not None:
                        link.send_bulk(Chunk(snapshot, lane, rotation, offset, total, 0), body)
                done += len(body)
            if done >= SLICE_BYTES:
                done = 0
                yield
        packed = tuple(struct.pack(f"<{len(s)}Q", *s) for s in sums)
        description = UnitDescriptor(snapshot, self._position, lane, len(unit), packed)
        for member in self._group.members:
            if (link := self._links.get(member)) is not None:
                link.send(Describe(description))
        self._learn(assembly, description)

    # What the group sends.

    def on_describe(self, source: int, unit: UnitDescriptor) -> None:
        """A member describes a unit of its own. Raises ProtocolError if it is not, or is no description."""
        if unit.position != source or len(unit.sums) != self._group.segments or unit.unit_bytes <= 0:
            raise ProtocolError(f"position {source} described a unit that is not its own, or not one")
        if self._belongs(unit.lane, unit.snapshot):
            assembly = self._assembly(unit.snapshot)
            if assembly is not None:
                self._learn(assembly, unit)

    def on_chunk(self, source: int, chunk: Chunk, body: memoryview) -> None:
        """A chunk for the parity kept here. One that fails its checksum gives the snapshot's protection up."""
        holds = source in self._group.data_members(chunk.rotation) if 0 <= chunk.rotation < self._width else False
        if not holds or self._position not in self._group.parity_members(chunk.rotation):
            raise ProtocolError(f"position {source} sent rotation {chunk.rotation}, which is not kept here")
        assembly = self._assembly(chunk.snapshot) if self._belongs(chunk.lane, chunk.snapshot) else None
        if assembly is None or assembly.failed or assembly.finishing or self._codec is None:
            return
        fold = assembly.folds.setdefault(chunk.lane, Fold(self._codec))
        try:
            destination = self._room(chunk.snapshot.slot, chunk.lane, chunk.offset + len(body))
            fold.add(source, chunk.offset, body, chunk.checksum, destination)
        except (ArenaTooSmall, ChecksumMismatch, ProtocolError) as error:
            assembly.failed = True
            self._tell_gate(Abandon(chunk.snapshot, str(error)))
            return
        self._finish_if_complete(assembly)

    @property
    def _width(self) -> int:
        return len(self._group.members)

    def _room(self, slot: int, lane: int, length: int) -> memoryview:
        view = self._store.parity(slot, lane)
        if len(view) < length:  # another node's lane is longer than ours
            ahead = len(view) + min(len(view), GROWTH_BYTES_MAX)
            for _ in self._store.grow_parity(slot, lane, max(length, ahead)):
                pass
            view = self._store.parity(slot, lane)
        return view

    # Both together.

    def _belongs(self, lane: int, snapshot: SnapshotId) -> bool:
        return snapshot.generation == self._membership.generation and 0 <= lane < self._membership.lanes

    def _assembly(self, snapshot: SnapshotId) -> Assembly | None:
        """What is collected of it; None if the slot belongs to a newer one, or the job gave it up."""
        assembly = self._assemblies.get(snapshot.slot)
        if assembly is None or assembly.catalog.snapshot != snapshot:
            catalog = self._store.begin(snapshot, self._membership.lanes)
            if catalog is None:
                return None
            for link in self._links.values():
                link.drop_bulk(lambda m: not (isinstance(m, Chunk) and m.snapshot.slot == snapshot.slot))
            assembly = self._assemblies[snapshot.slot] = Assembly(catalog)
        return None if assembly.catalog.dropped else assembly

    def _learn(self, assembly: Assembly, unit: UnitDescriptor) -> None:
        if self._store.catalog(unit.snapshot) is assembly.catalog:
            assembly.catalog.put(unit)
            self._finish_if_complete(assembly)

    def _finish_if_complete(self, assembly: Assembly) -> None:
        lengths = [self._lengths(assembly, lane) for lane in range(self._membership.lanes)]
        own = [assembly.catalog.unit(self._position, lane) for lane in range(self._membership.lanes)]
        if assembly.finishing or any(each is None for each in lengths) or any(unit is None for unit in own):
            return
        whole = [each for each in lengths if each is not None]
        if all(self._fold(assembly, lane).is_complete(whole[lane]) for lane in range(len(whole))):
            assembly.finishing = True
            self._spawn(self._finish(assembly, [max(each.values(), default=0) for each in whole]))

    def _fold(self, assembly: Assembly, lane: int) -> Fold:
        return assembly.folds.get(lane) or Fold(self._codec)  # type: ignore[arg-type]

    def _lengths(self, assembly: Assembly, lane: int) -> dict[int, int] | None:
        """What each member must send for the parity kept here, once all have described their units."""
        lengths = {}
        for rotation in self._group.parity_rotations(self._position):
            for member in self._group.data_members(rotation):
                unit = assembly.catalog.unit(member, lane)
                if unit is None:
                    return None
                spans = segment_spans(unit.unit_bytes, self._group.segments)
                lengths[member] = spans[self._group.segment_of(member, rotation)][1]
        return lengths

    def _finish(self, assembly: Assembly, lengths: list[int]) -> Work:
        """Checksum the parity and put it on record; from here on this position counts as stored."""
        catalog, parity = assembly.catalog, []
        for lane, length in enumerate(lengths):
            if length:
                sums = yield from sums_of(self._store.parity(catalog.snapshot.slot, lane)[:length])
                parity.append(ParityDescriptor(lane, length, sums))
        if self._store.catalog(catalog.snapshot) is catalog and not catalog.dropped:
            catalog.parity = parity
            self._store.save(catalog)
            if parity:
                self._tell_gate(PositionStored(catalog.snapshot))

    def _spawn(self, work: Work) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._loop.spawn(work))
