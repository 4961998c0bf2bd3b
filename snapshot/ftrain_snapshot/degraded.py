"""Any byte range of any unit of the group, wherever its bytes are: here, on the node whose they are, or nowhere.

    chunk here, and sound            ──> from memory
    its node is connected, and has it ──> fetched from it
    else                             ──> decoded from the same stripes of k others, and from no more than those

Every chunk is checked against the checksum that all members of the group keep, before a byte of it is handed out; once
for all ranges of a request that touch it. That proves a decoded chunk, too: those of its sources are looked at only
where it came out wrong. A request is at most 4 MiB, so whoever reads much (the durable tier, a spare,
another layout) does so in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ftrain_snapshot.damage import Place, damages
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.gather import Gather, Order
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.manifest import CHUNK_BYTES, Catalog, UnitDescriptor, checksum, chunk_bytes, sum_at
from ftrain_snapshot.messages import Bytes, Incomplete, Range, Read, Refused, Reply, UnitInfo
from ftrain_snapshot.node import Node
from ftrain_snapshot.read_plan import READ_BYTES_MAX, READ_CHUNKS_MAX
from ftrain_snapshot.rebuild_plan import Piece, Shape, Sight, Stuck, pieces
from ftrain_snapshot.words import SnapshotId

STRIKES_MAX = 8
"""How often one source's damaged bytes are asked for again, within one read."""


class Answer(Protocol):
    """Answers a client, once: a message, and what follows behind it."""

    def __call__(self, reply: Reply, body: memoryview = ...) -> None:
        """Send both."""


class Reads:
    """All reads of one group's units in one generation, on one node."""

    def __init__(
        self, node: Node, gather: Gather, on_damage: Callable[[SnapshotId, Place], None], *, urgent: bool = False
    ) -> None:
        """``on_damage``: a chunk of this node itself was found damaged. ``urgent``: the job waits for what is read."""
        self.group, self.position = node.group, node.position
        self.gather = gather
        self.on_damage = on_damage
        self.urgent = urgent
        self._node, self._store, self._codec = node, node.store, node.codec
        self._lanes = node.membership.lanes

    def units(self, snapshot: SnapshotId) -> tuple[UnitInfo, ...]:
        """The units of the group. Raises SnapshotIncomplete if this node does not know all of them."""
        found = []
        for position in self.group.members:
            for lane in range(self._lanes):
                h = self._unit(snapshot, position, lane).header
                size = (h.data_bytes, h.manifest_offset, h.manifest_bytes, h.unit_bytes)
                found.append(UnitInfo(position, lane, h.rank, h.world_size, *size))
        return tuple(found)

    def answer_read(self, request: Read, answer: Answer) -> None:
        """What a client asked for, or why not; it may take a while."""

        def on_bytes(data: memoryview) -> None:
            answer(Bytes(request.number, len(data)), data)

        where = (request.snapshot, request.position, request.lane, request.ranges)
        try:
            self.read(*where, on_bytes, lambda reason: answer(Incomplete(reason)))
        except SnapshotIncomplete as error:
            answer(Incomplete(str(error)))
        except ValueError as error:
            answer(Refused(str(error)))

    def read(
        self,
        snapshot: SnapshotId,
        position: int,
        lane: int,
        ranges: Sequence[Range],
        on_bytes: Callable[[memoryview], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Read these ranges of a unit, one after the other; one of the two is called once, maybe before this returns.

        Raises SnapshotIncomplete if the unit is not known here, ValueError on a range that is not in it, or if they
        are too long.
        """
        check_ranges(ranges)
        unit = self._unit(snapshot, position, lane)
        if any(stop > unit.header.unit_bytes for _, stop in ranges):
            raise ValueError(f"{ranges[-1]} cannot be read: the unit has {unit.header.unit_bytes} bytes")
        _Reading(self, unit, ranges, on_bytes, on_failed).begin()

    def _unit(self, snapshot: SnapshotId, position: int, lane: int) -> UnitDescriptor:
        catalog = self._catalog(snapshot)
        unit = catalog.unit(position, lane)
        if unit is None and position == self.position:
            unit = self._store.describe(lane, snapshot)
        if unit is None:
            which = f"position {position}, lane {lane}, of snapshot {snapshot.version}"
            raise SnapshotIncomplete(f"the unit of {which} is not known on position {self.position}")
        return unit

    def _catalog(self, snapshot: SnapshotId) -> Catalog:
        catalog = self.known(snapshot)
        if catalog is None or catalog.dropped:
            raise SnapshotIncomplete(f"snapshot {snapshot.version} is not kept on position {self.position}")
        return catalog

    def known(self, snapshot: SnapshotId) -> Catalog | None:
        """What is known of the group's units."""
        return self._store.catalog(snapshot)

    def sight(self, unit: UnitDescriptor, distrusted: dict[int, list[Damage]]) -> Sight:
        """Who can be asked; whoever turned out not to have something is left out there."""
        catalog = self.known(unit.snapshot)
        units = {u.position: u for u in catalog.units if u.lane == unit.lane} if catalog is not None else {}
        lengths = {p: units[p].header.unit_bytes for p in self.group.members if p in units}
        lengths[unit.position] = unit.header.unit_bytes
        able = {self.position, *self._node.linked}
        if len(lengths) < len(self.group.members):  # too little is known to decode: only the owner can help
            able &= {unit.position}
            lengths |= {p: unit.header.unit_bytes for p in self.group.members if p not in lengths}
        bad: dict[int, tuple[Damage, ...]] = {p: tuple(each) for p, each in distrusted.items()}
        bad[self.position] = (*bad.get(self.position, ()), *damages(self._store.damaged.get(unit.snapshot, ())))
        generator = self._codec.generator if self._codec is not None else "none"
        return Sight(generator, {unit.lane: Shape(self.group, lengths)}, bad, able)

    def expected(self, snapshot: SnapshotId, position: int, lane: int, rotation: int, stripe: int) -> int | None:
        """The checksum of a member's data chunk; None for parity."""
        catalog = self.known(snapshot)
        unit = catalog.unit(position, lane) if catalog is not None else None
        if unit is None or position not in self.group.data_members(rotation):
            return None
        return sum_at(unit.sums, self.group.chunk_of(position, rotation, stripe))


def check_ranges(ranges: Sequence[Range]) -> None:
    """Raises ValueError for what are no ranges, or too much for one answer."""
    total, chunks = 0, set[int]()
    for start, stop in ranges:
        total += stop - start
        if not 0 <= start <= stop or total > READ_BYTES_MAX:
            raise ValueError(f"bytes {start} to {stop} cannot be read at once: up to {READ_BYTES_MAX} can")
        chunks.update(range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)))
    if len(chunks) > READ_CHUNKS_MAX:
        raise ValueError(f"{len(chunks)} chunks cannot be read at once: up to {READ_CHUNKS_MAX} can")


def _spans(ranges: Sequence[Range]) -> dict[int, list[tuple[int, int, int]]]:
    """For each chunk what is wanted of it: where in it that begins and ends, and where in the answer it goes."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    at = 0
    for start, stop in ranges:
        for chunk in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES) if stop > start else 0):
            begin = chunk * CHUNK_BYTES
            first, last = max(start, begin), min(stop, begin + CHUNK_BYTES)
            found.setdefault(chunk, []).append((first - begin, last - begin, at + first - start))
        at += stop - start
    return found


class _Reading:
    """One read: a handful of chunks."""

    def __init__(
        self,
        reads: Reads,
        unit: UnitDescriptor,
        ranges: Sequence[Range],
        on_bytes: Callable[[memoryview], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.reads = reads
        self.unit = unit
        self._on_bytes, self._on_failed = on_bytes, on_failed
        self._room = reads.gather.rooms.take(sum(stop - start for start, stop in ranges))
        self._left = _spans(ranges)
        self._distrusted: dict[int, list[Damage]] = {}
        self._strikes: dict[int, int] = {}
        self._doubtful: set[int] = set()
        """Chunks that came out wrong: which source is damaged is found out from then on."""
        self._over = False

    def begin(self) -> None:
        for chunk in sorted(self._left):
            self._fetch(chunk)
        self._finish_if_complete()

    def _fetch(self, chunk: int) -> None:
        group, position = self.reads.group, self.unit.position
        rotation, stripe = group.rotation_of(position, chunk), group.stripe_of(chunk)
        sight = self.reads.sight(self.unit, self._distrusted)
        wanted = [Damage(self.unit.lane, rotation, stripe, stripe + 1)]
        for piece in pieces(sight, position, wanted, {}, 1, whole=False):
            if isinstance(piece, Stuck):
                away = sorted({position, *piece.lost, *piece.waits_for})
                self._fail(f"the bytes of positions {away} cannot be had now, and parity does not replace that many")
            elif not self._over:
                checked = len(piece.sources) < 2 or chunk in self._doubtful
                self.reads.gather.begin(_ReadOrder(self, piece, chunk, checked=checked))

    def take(self, chunk: int, data: memoryview, *, proved: bool) -> bool:
        """A chunk's bytes, however they were had. ``proved``: they were compared with their checksum."""
        if not proved and checksum(data) != sum_at(self.unit.sums, chunk):
            return False
        for first, last, at in self._left.pop(chunk, ()):
            self._room[at : at + last - first] = data[first:last]
        return True

    def done(self) -> None:
        self._finish_if_complete()

    def doubt(self, chunk: int) -> None:
        """Once more, with a look at its sources."""
        self._doubtful.add(chunk)
        if not self._over:
            self._fetch(chunk)

    def failed(self, order: _ReadOrder, source: int, *, damaged: bool) -> None:
        piece = order.piece
        self._strikes[source] = self._strikes.get(source, 0) + 1
        if source == self.reads.position and damaged:
            self.reads.on_damage(self.unit.snapshot, (piece.lane, piece.rotation, piece.first))
        if not damaged or source == self.reads.position or self._strikes[source] > STRIKES_MAX:
            where = Damage(piece.lane, piece.rotation, piece.first, piece.stop)
            self._distrusted.setdefault(source, []).append(where)
        if not self._over:
            self._fetch(order.chunk)

    def _finish_if_complete(self) -> None:
        if not self._left and not self._over:
            self._over = True
            self._on_bytes(self._room)

    def _fail(self, reason: str) -> None:
        if not self._over:
            self._over = True
            unit = self.unit
            self._on_failed(f"snapshot {unit.snapshot.version}, position {unit.position}, lane {unit.lane}: {reason}")


class _ReadOrder(Order):
    """One chunk of a read."""

    def __init__(self, reading: _Reading, piece: Piece, chunk: int, *, checked: bool) -> None:
        super().__init__(reading.unit.snapshot, piece, urgent=reading.reads.urgent, checked=checked)
        self.chunk = chunk
        self._reading = reading
        self._wrong = False

    def length(self, stripe: int) -> int:
        return chunk_bytes(self._reading.unit.header.unit_bytes, self.chunk)

    def expected(self, position: int, stripe: int) -> int | None:
        piece = self.piece
        return self._reading.reads.expected(self.snapshot, position, piece.lane, piece.rotation, stripe)

    def on_stripe(self, stripe: int, data: memoryview) -> None:
        sources, owner = self.piece.sources, self._reading.unit.position
        proved = [source.position for source in sources] == [owner]  # as it came: `expected` is its own checksum
        self._wrong = not self._reading.take(self.chunk, data, proved=proved)

    def on_done(self) -> None:
        if self._wrong and not self.checked:
            self._reading.doubt(self.chunk)
        elif self._wrong:  # some source is not of this snapshot: try others
            self._reading.failed(self, self.piece.sources[-1].position, damaged=False)
        else:
            self._reading.done()

    def on_failed(self, source: int, damaged: int | None, *, silent: bool) -> None:
        self._reading.failed(self, source, damaged=damaged is not None)
