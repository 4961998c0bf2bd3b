"""From captured to protected: sends this node's chunks to the holders of their parity, and makes its own.

    own lanes, while they are captured ──> chunks, descriptions (stream.py) ──> all lanes: PositionSealed ──> gate
    chunks of the others ──> fold, stripe by stripe
    all of a stripe's sources described ──> keep the parity of stripes that did not change, fetch what is missing
                                              │ all there: catalog, PositionStored ──> gate

What has not come when its source is described will not come unasked: it had not changed, or it was lost. Where nothing
of a stripe has changed, by its sources' checksums, the parity of another slot is its parity; else what is missing is
fetched, however it came about. One snapshot is in flight at a time (ledger.py), so the queues hold at most this node's
state, as views.
"""

from __future__ import annotations

from collections.abc import Iterator

from ftrain_snapshot.assembly import Assembly, Part
from ftrain_snapshot.damage import damages
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, ProtocolError
from ftrain_snapshot.fetch import Fetches
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Task, Work
from ftrain_snapshot.manifest import UnitDescriptor, chunk_count, sum_at
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild_plan import Shape
from ftrain_snapshot.status import Volume
from ftrain_snapshot.stream import Stream, Streams
from ftrain_snapshot.unchanged import Unchanged
from ftrain_snapshot.wire import Abandon, Chunk, Describe, Mismatch, PeerMessage, PositionSealed, PositionStored
from ftrain_snapshot.words import SnapshotId

SLICE_STRIPES = 64
"""Stripes to look at before others get their turn (under a millisecond)."""
DAMAGED_MAX = 3
"""How many damaged chunks are asked for again before the snapshot's protection is given up."""


class Protect:
    """One generation's protecting, on one node."""

    def __init__(self, node: Node, fetches: Fetches) -> None:
        self.last, self.total = Volume(), Volume()
        """Of snapshots protected here in this generation."""
        m = node.membership
        self._node, self._fetches = node, fetches
        self._loop, self._store, self._links, self._tell_gate = node.loop, node.store, node.links, node.tell_gate
        self._generation, self._lanes, self._position = m.generation, m.lanes, m.position
        self._group, self._codec = node.group, node.codec
        self._assemblies: dict[int, Assembly] = {}
        self._tasks: list[Task] = []
        self._streams = Streams(node, self._is_open, self._on_described)

    @property
    def under_way(self) -> bool:
        """Parity of some snapshot is being made here."""
        return any(not (a.stored or a.failed) for a in self._assemblies.values()) and self._codec is not None

    def close(self) -> None:
        """The generation is over."""
        self._streams.close()
        for task in self._tasks:
            task.cancel()

    # This node's own lanes.

    def adopt(self) -> None:
        """Take note of what is sealed already, without streaming it: this daemon was restarted meanwhile."""
        self._streams.adopt()

    def scan(self) -> None:
        """Find lanes that were sealed without a word (their worker died in between)."""
        self._streams.scan()

    def progress(self, lane: int, snapshot: SnapshotId) -> None:
        """Chunks of a lane here are published, or it is sealed, as its header says. Stale notices do nothing."""
        if self._belongs(lane, snapshot):
            self._streams.progress(lane, snapshot)

    def on_link(self, position: int) -> None:
        """A member is connected (again): what it missed it will fetch, once it knows what there is."""
        self._streams.describe_to(position)

    @property
    def taken(self) -> int:
        """Snapshots begun in this generation."""
        return self._streams.taken

    def _is_open(self, snapshot: SnapshotId) -> bool:
        """Whether it may be streamed: the slot is its own, and the job has not given it up."""
        return self._assembly(snapshot) is not None

    def _on_described(self, stream: Stream, unit: UnitDescriptor) -> None:
        """A lane here is sealed, and all of it on its way."""
        assembly = self._assembly(unit.snapshot)
        if assembly is None:
            return
        assembly.digests[stream.lane] = unit.header.digest
        assembly.volume.captured_bytes += unit.header.unit_bytes
        assembly.volume.copied_bytes += stream.region.copied_bytes
        assembly.volume.sent_bytes += stream.sent_bytes
        if len(assembly.digests) == self._lanes:
            digests = tuple(assembly.digests[lane] for lane in range(self._lanes))
            self._tell_gate(PositionSealed(unit.snapshot, digests))
        self._learn(assembly, unit)

    # What the group sends.

    def on_describe(self, source: int, unit: UnitDescriptor) -> None:
        """A member describes a unit of its own. Raises ProtocolError if it is not, or is no description."""
        header = unit.header
        if unit.position != source or header.unit_bytes <= 0 or len(unit.sums) != 8 * header.chunks:
            raise ProtocolError(f"position {source} described a unit that is not its own, or not one")
        assembly = self._assembly(unit.snapshot) if self._belongs(unit.lane, unit.snapshot) else None
        if assembly is not None:
            if assembly.failed:  # described again: its sender is back
                assembly.failed, assembly.damaged = False, 0
                for part in assembly.parts.values():
                    self._begin_again(part)
            self._learn(assembly, unit)

    def on_chunk(self, source: int, chunk: Chunk, body: memoryview) -> None:
        """A chunk for the parity kept here."""
        if chunk.rotation not in self._group.parity_rotations(self._position) or (
            source not in self._group.data_members(chunk.rotation) or chunk.stripe < 0 or not body
        ):
            raise ProtocolError(f"position {source} sent rotation {chunk.rotation}, which is not kept here")
        assembly = self._assembly(chunk.snapshot) if self._belongs(chunk.lane, chunk.snapshot) else None
        if assembly is None or assembly.failed or assembly.stored or self._codec is None:
            return
        part = self._part(assembly, chunk.lane, chunk.rotation)
        assembly.volume.received_bytes += len(body)
        try:
            self._fold(assembly, part, source, chunk.stripe, chunk.checksum, body)
        except ChecksumMismatch as error:  # it counts as one that did not come: it is fetched in the end
            self._say_damaged(source, chunk, error)

    def _say_damaged(self, source: int, chunk: Chunk, error: ChecksumMismatch) -> None:
        """Let the source look at its own: if it is damaged there, nobody can protect this snapshot."""
        log("chunk_damaged", version=chunk.snapshot.version, source=source, reason=error)
        self._links[source].send(Mismatch(chunk.snapshot, chunk.lane, chunk.rotation, chunk.stripe, chunk.attempt))

    def _fold(
        self, assembly: Assembly, part: Part, source: int, stripe: int, expected_sum: int, body: memoryview
    ) -> None:
        """Add one chunk. Raises ChecksumMismatch."""
        if stripe in part.done:
            return
        snapshot, column = assembly.catalog.snapshot, part.columns[source]
        try:
            place = self._store.place_parity(snapshot, part.lane, part.rotation, stripe, len(body))
        except ArenaTooSmall as error:
            self._abandon(assembly, str(error))
            return
        before = part.fold.came(stripe)
        if not part.fold.add(column, part.row[column], stripe, body, expected_sum, place):
            return
        assembly.volume.coded_bytes += len(body)
        if lost := before & ~part.fold.came(stripe):
            self._sum_again(assembly, part, stripe, [p for p, c in part.columns.items() if lost >> c & 1])
        if part.fold.came(stripe) == (1 << len(part.columns)) - 1:
            self._close_stripe(assembly, part, stripe)
        elif stripe in part.missing:
            part.missing[stripe] -= 1
            if part.missing[stripe] == 0:
                self._close_stripe(assembly, part, stripe)

    def _sum_again(self, assembly: Assembly, part: Part, stripe: int, lost: list[int]) -> None:
        """What had come from these was damaged here before it was complete: ask them once more."""
        log("sum_damaged", version=assembly.catalog.snapshot.version, rotation=part.rotation, stripe=stripe)
        assembly.damaged += 1
        if assembly.damaged > DAMAGED_MAX:
            self._abandon(assembly, f"rotation {part.rotation}, stripe {stripe}: damaged while it was summed up")
        elif stripe in part.missing:  # else it has not been looked at yet: what has not come is asked for then
            part.missing[stripe] += len(lost)
            for position in lost:
                self._ask(assembly, part, position, stripe, stripe + 1)

    def _close_stripe(self, assembly: Assembly, part: Part, stripe: int) -> None:
        """All has come."""
        sum_ = part.fold.sum(stripe)
        self._store.record_parity(assembly.catalog.snapshot, part.lane, part.rotation, stripe, sum_)
        part.missing.pop(stripe, None)
        part.done.add(stripe)
        if part.is_complete:
            self._finish_if_complete(assembly)

    def _abandon(self, assembly: Assembly, reason: str) -> None:
        if not assembly.failed and not assembly.stored:
            assembly.failed = True
            self._tell_gate(Abandon(assembly.catalog.snapshot, reason))

    # What did not come.

    def _settle(self, assembly: Assembly, part: Part) -> Work:
        """All sources are described, and what they sent has come: keep what did not change, fetch the rest."""
        part.settling = True
        units = {p: u for p in part.columns if (u := assembly.catalog.unit(p, part.lane)) is not None}
        shape = Shape(self._group, {p: u.header.unit_bytes for p, u in units.items()})
        length, unchanged = shape.parity_bytes(part.rotation), Unchanged(self._node, assembly.catalog, part, units)
        wanted: dict[int, list[int]] = {}
        for stripe in range(chunk_count(length)):
            if stripe % SLICE_STRIPES == SLICE_STRIPES - 1:
                yield
                if not self._is_wanted(assembly) or not part.settling:
                    return
            if stripe in part.done:
                continue
            due = [p for p in part.columns if shape.length(p, part.rotation, stripe)]
            absent = [p for p in due if not part.fold.came(stripe) >> part.columns[p] & 1]
            if not absent:
                self._close_stripe(assembly, part, stripe)
            elif unchanged.keep(stripe):
                assembly.volume.kept_chunks += 1
                part.done.add(stripe)
            else:
                part.missing[stripe] = len(absent)
                for position in absent:
                    wanted.setdefault(position, []).append(stripe)
        part.parity_bytes = length
        for position, stripes in wanted.items():
            for damage in damages((part.lane, part.rotation, stripe) for stripe in stripes):
                self._ask(assembly, part, position, damage.first, damage.stop)
        part.settling = False
        self._finish_if_complete(assembly)

    def _ask(self, assembly: Assembly, part: Part, source: int, first: int, stop: int) -> None:
        def on_chunk(position: int, chunk: Chunk, body: memoryview) -> None:
            unit = assembly.catalog.unit(position, part.lane)
            if not self._is_wanted(assembly) or unit is None or not first <= chunk.stripe < stop:
                return
            assembly.volume.received_bytes += len(body)
            expected = sum_at(unit.sums, self._group.chunk_of(position, part.rotation, chunk.stripe))
            try:
                self._fold(assembly, part, position, chunk.stripe, expected, body)
            except ChecksumMismatch as error:
                self._say_damaged(position, chunk, error)
                assembly.damaged += 1
                if assembly.damaged > DAMAGED_MAX:
                    self._abandon(assembly, str(error))
                else:
                    self._ask(assembly, part, position, chunk.stripe, chunk.stripe + 1)
            if chunk.stripe == stop - 1:
                self._forget(part, attempt)

        def on_failed(position: int, reason: str) -> None:
            self._abandon(assembly, reason)

        attempt = self._fetches.ask(
            source, assembly.catalog.snapshot, part.lane, part.rotation, first, stop, on_chunk, on_failed
        )
        part.attempts.add(attempt)
        if attempt == 0:
            self._abandon(assembly, f"position {source} is not connected")

    def _forget(self, part: Part, attempt: int) -> None:
        part.attempts.discard(attempt)
        self._fetches.forget(attempt)

    def _begin_again(self, part: Part) -> None:
        """What is missing of it will be asked for anew."""
        for attempt in list(part.attempts):
            self._forget(part, attempt)
        if not part.is_complete:
            part.parity_bytes, part.settling, part.missing = None, False, {}

    # Both together.

    def drop(self, snapshot: SnapshotId) -> None:
        """The job gave it up: nothing more is sent, and what was collected is forgotten."""
        assembly = self._assemblies.get(snapshot.slot)
        if assembly is not None and assembly.catalog.snapshot == snapshot:
            del self._assemblies[snapshot.slot]
            for part in assembly.parts.values():
                self._begin_again(part)
        for link in self._links.values():
            link.drop_bulk(lambda m: _streamed(m) != snapshot)

    def _belongs(self, lane: int, snapshot: SnapshotId) -> bool:
        return snapshot.generation == self._generation and 0 <= lane < self._lanes

    def _is_wanted(self, assembly: Assembly) -> bool:
        """The slot is still this snapshot's, and it may still become protected."""
        return self._assemblies.get(assembly.catalog.snapshot.slot) is assembly and not assembly.failed

    def _assembly(self, snapshot: SnapshotId) -> Assembly | None:
        """What is collected of it; None if the slot belongs to a newer one, or the job gave it up."""
        assembly = self._assemblies.get(snapshot.slot)
        if assembly is None or assembly.catalog.snapshot != snapshot:
            catalog = self._store.begin(snapshot, self._lanes)
            if catalog is None or catalog.dropped:
                return None
            for link in self._links.values():
                link.drop_bulk(lambda m: (s := _streamed(m)) is None or s.slot != snapshot.slot)
            assembly = self._assemblies[snapshot.slot] = Assembly(catalog)
        return assembly

    def _part(self, assembly: Assembly, lane: int, rotation: int) -> Part:
        part = assembly.parts.get((lane, rotation))
        if part is None:
            assert self._codec is not None
            row = self._codec.rows(self._group.data)[self._group.row_of(self._position, rotation)]
            part = Part(lane, rotation, self._group.data_members(rotation), row, self._codec)
            assembly.parts[lane, rotation] = part
        return part

    def _parts(self, assembly: Assembly) -> Iterator[Part]:
        """All that this node must keep."""
        for lane in range(self._lanes):
            for rotation in self._group.parity_rotations(self._position):
                yield self._part(assembly, lane, rotation)

    def _learn(self, assembly: Assembly, unit: UnitDescriptor) -> None:
        assembly.catalog.put(unit)
        if self._codec is None or assembly.failed or assembly.stored:
            return
        for part in list(self._parts(assembly)):  # the last one to settle may complete it, and all are let go of
            known = all(assembly.catalog.unit(p, part.lane) is not None for p in part.columns)
            if part.lane == unit.lane and known and part.parity_bytes is None and not part.settling:
                self._spawn(self._settle(assembly, part))
        self._finish_if_complete(assembly)

    def _finish_if_complete(self, assembly: Assembly) -> None:
        """Once all parity kept here is there, put it on record: from here on this position counts as stored."""
        catalog, codec = assembly.catalog, self._codec
        known = {(u.position, u.lane) for u in catalog.units}
        if codec is None or assembly.stored or not self._is_wanted(assembly):
            return
        if len(known) < len(self._group.members) * self._lanes or not all(p.is_complete for p in self._parts(assembly)):
            return
        for part in self._parts(assembly):
            described = self._store.describe_parity(
                catalog.snapshot, part.lane, part.rotation, codec.generator, part.parity_bytes or 0
            )
            catalog.put_parity(described)
        assembly.stored = True
        assembly.parts.clear()
        self._store.save(catalog)
        self.last = assembly.volume
        self.total.add(assembly.volume)
        volume = {name: getattr(assembly.volume, name) for name in assembly.volume.__struct_fields__}
        log("protected", version=catalog.snapshot.version, position=self._position, **volume)
        self._tell_gate(PositionStored(catalog.snapshot))

    def _spawn(self, work: Work) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._loop.spawn(work))


def _streamed(message: PeerMessage) -> SnapshotId | None:
    """Of which snapshot it is a chunk that nobody asked for, or a description; None: it is something else."""
    match message:
        case Chunk(attempt=0):
            return message.snapshot
        case Describe():
            return message.unit.snapshot
    return None
