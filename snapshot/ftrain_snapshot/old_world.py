"""What a generation starts from, where another world captured it: read from its holders, and never written.

    this node ──dials──> every holder: welcome, then what it lacks, and the units of its group (Restoring)
    ranges of a unit ──> here | from its holder | decoded from the same stripes of k others of its group (degraded.py)
    a holder ──answers──> whoever has dialled: its part of stripes (Fetch), data or parity

Positions are those of the old world throughout: survivors have another one in the world that is served, newcomers have
none (-1) and read all. Whoever reads decodes for itself, so every node that reads is connected to every holder, and
nobody passes anything on. The workers of the whole job wait for these bytes: they go before all other bulk. Nothing is
rebuilt in its place: the next protected snapshot makes all this superfluous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from ftrain_snapshot.codec import Codec, codec_for
from ftrain_snapshot.damage import Place, damages
from ftrain_snapshot.degraded import Answer, Reads
from ftrain_snapshot.dials import Dials
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.fetch import answer_fetch
from ftrain_snapshot.gather import Gather
from ftrain_snapshot.inventory import DAMAGES_MAX, Damage
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.manifest import Catalog, UnitDescriptor, checksum
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.messages import Bytes, Read, Refused, Units
from ftrain_snapshot.node import Node
from ftrain_snapshot.placement import Group, groups
from ftrain_snapshot.rebuild_plan import STRIPES_MAX, Sight
from ftrain_snapshot.repair import in_parts
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.waiting_reads import WaitingReads
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed, Mismatch, OriginHello, PeerMessage, PeerWelcome, Restoring
from ftrain_snapshot.words import SnapshotId
from ftrain_snapshot.worlds import Seat


class OldWorld:
    """The origin of one generation, as one node reads it and gives it to others."""

    def __init__(self, loop: Loop, store: Store, membership: Membership, lines: Lines) -> None:
        """Raises SnapshotError if its codec is not here."""
        origin = membership.origin
        assert origin is not None
        self.snapshot = origin.snapshot
        self._loop, self._store, self._origin = loop, store, origin
        self._hurry = lines.hurry
        self._generation, self._lanes = membership.generation, membership.lanes
        self._name = membership.peers[membership.position].node
        formed = [Group(members, origin.parity) for members in origin.groups or groups(origin.nodes, origin.parity)]
        codec = codec_for(origin.parity, origin.codec) if origin.parity else None
        self._links: dict[int, Connection] = {}
        """Holders that have said what they have."""
        self._greeting: dict[int, Connection] = {}
        """Those that are still saying it."""
        self._readers: set[Connection] = set()
        self._dials = Dials(
            loop, lines, self._generation, hello=self._hello, on_welcome=self._on_welcome, on_closed=self._on_lost
        )
        node = self._node(membership, formed[0], codec)
        self._gather = Gather(node)
        self._reads: dict[int, _GroupReads] = {}
        """By position."""
        for group in formed:
            if codec is not None:
                codec.rows(group.data)
            reads = _GroupReads(replace(node, group=group), self._gather, self._look_at)
            self._reads |= dict.fromkeys(group.members, reads)
        self._waiting = WaitingReads(loop, self._is_all_heard)

    def _node(self, membership: Membership, group: Group, codec: Codec | None) -> Node:
        """This node as a member of the old world."""
        origin = self._origin
        then = Membership(
            membership.generation, origin.position, self._lanes, origin.parity, origin.holders, origin.snapshot,
            groups=origin.groups, codec=origin.codec,
        )  # fmt: skip
        return Node(
            loop=self._loop,
            store=self._store,
            membership=then,
            group=group,
            codec=codec,
            links=self._links,
            tell_gate=lambda _: None,
            hurry=self._hurry,
        )

    # Life.

    def start(self) -> None:
        """Connect to all holders."""
        if (seat := self._store.seat(self.snapshot)) is not None:
            self._reads[seat.position].bad[seat.position] = self._lacks(seat)
        for unit in self._own_units():
            self._learn(self._origin.position, unit)
        for peer in self._others():
            self._dials.dial(peer)

    def close(self) -> None:
        """It is not needed any more, or the generation is over."""
        self._dials.close()
        self._gather.close()
        self._waiting.close(f"snapshot {self.snapshot.version} of another world is not kept any more")
        for connection in [*self._links.values(), *self._greeting.values(), *self._readers]:
            connection.close("what it was for is over")

    @property
    def is_read(self) -> bool:
        """Somebody here waits for bytes of it."""
        return self._waiting.is_busy

    def _others(self) -> list[Peer]:
        return [peer for peer in self._origin.holders if peer.position != self._origin.position]

    def _is_all_heard(self) -> bool:
        """All holders are connected, and have said what they have."""
        return all(peer.position in self._links for peer in self._others())

    # Reading: what holders say.

    def _hello(self, peer: Peer) -> OriginHello:
        return OriginHello(self._generation, self._name, self.snapshot, peer.position)

    def _on_welcome(self, position: int, connection: Connection) -> None:
        self._greeting[position] = connection
        connection.on_message = lambda _, message, body: self._on_message(position, message, body)

    def _on_message(self, position: int, message: PeerMessage, body: memoryview) -> None:
        match message:
            case Restoring(snapshot=self.snapshot):
                self._on_told(position, message)
            case Chunk():
                self._gather.on_chunk(position, message, body)
            case FetchFailed():
                self._gather.on_fetch_failed(position, message)
            case _:
                raise ProtocolError(f"{type(message).__name__} from a holder of an origin does not belong here")

    def _on_told(self, position: int, told: Restoring) -> None:
        for unit in told.units:
            self._learn(position, unit)
        self._reads[position].bad[position] = told.bad
        if told.more or (connection := self._greeting.pop(position, None)) is None:
            return
        self._links[position] = connection
        log("origin_linked", position=position, version=self.snapshot.version)
        self._waiting.go_on()

    def _learn(self, source: int, unit: UnitDescriptor) -> None:
        reads, header = self._reads[source], unit.header
        sound = unit.snapshot == self.snapshot and header.unit_bytes > 0 and len(unit.sums) == 8 * header.chunks
        ours = unit.lane < self._lanes and unit.position in reads.group.members
        if sound and ours and reads.catalog.unit(unit.position, unit.lane) is None:
            reads.catalog.put(unit)

    def _on_lost(self, position: int, connection: Connection, reason: str) -> None:
        self._greeting.pop(position, None)
        if self._links.get(position) is connection:
            del self._links[position]
            log("origin_lost", position=position, reason=reason)
            self._gather.on_lost(position)

    # Reading: what clients ask.

    def answer_units(self, answer: Answer) -> None:
        """All units of that world, once they are known."""

        def attempt(answer: Answer, _: Callable[[str], None]) -> None:
            every = {id(reads): reads for reads in self._reads.values()}
            found = [unit for reads in every.values() for unit in reads.units(self.snapshot)]
            answer(Units(tuple(sorted(found, key=lambda unit: (unit.position, unit.lane)))))

        self._waiting.add(attempt, answer)

    def answer_read(self, request: Read, answer: Answer) -> None:
        """Any ranges of any unit of that world."""
        r = request
        if r.position not in self._reads or r.lane >= self._lanes:
            answer(Refused(f"position {r.position}, lane {r.lane} was not in that world"))
            return

        def attempt(answer: Answer, on_failed: Callable[[str], None]) -> None:
            def on_bytes(data: memoryview) -> None:
                answer(Bytes(r.number, len(data)), data)

            self._reads[r.position].read(r.snapshot, r.position, r.lane, r.ranges, on_bytes, on_failed)

        self._waiting.add(attempt, answer)

    # Giving it to others.

    def adopt(self, connection: Connection, hello: OriginHello) -> None:
        """Somebody wants to read here. Raises ProtocolError if there is nothing of that snapshot."""
        seat = self._store.seat(self.snapshot)
        if hello.snapshot != self.snapshot or seat is None or hello.to_position != seat.position:
            raise ProtocolError(f"position {hello.to_position} of snapshot {hello.snapshot.version} is not here")
        self._readers.add(connection)
        connection.on_closed = lambda c, _: self._readers.discard(c)
        connection.on_message = self._on_question
        connection.send(PeerWelcome(self._generation))
        bad, parts = self._lacks(seat), in_parts(self._own_units())
        for number, part in enumerate(parts, start=1):
            connection.send(Restoring(self.snapshot, bad, part, more=number < len(parts)))
        log("origin_reader", node=hello.node, version=self.snapshot.version)

    def _on_question(self, connection: Connection, message: PeerMessage, body: memoryview) -> None:
        match message:
            case Fetch(snapshot=self.snapshot, shares=()):
                name = f"position {self._origin.position} of the old world"
                answer_fetch(self._store, connection, message, name, urgent=message.urgent)
            case Mismatch(snapshot=self.snapshot):
                self._look_at(self.snapshot, (message.lane, message.rotation, message.stripe))
            case _:
                raise ProtocolError(f"{type(message).__name__} from a reader of an origin does not belong here")

    def _own_units(self) -> list[UnitDescriptor]:
        """All that is known here of its group's units, its own from its regions."""
        seat, catalog = self._store.seat(self.snapshot), self._store.catalog(self.snapshot)
        if seat is None:
            return []
        known = list(catalog.units) if catalog is not None else []
        mine = (self._store.describe(lane, self.snapshot) for lane in range(self._lanes))
        told = {(unit.position, unit.lane) for unit in known}
        return known + [unit for unit in mine if unit is not None and (unit.position, unit.lane) not in told]

    def _lacks(self, seat: Seat) -> tuple[Damage, ...]:
        """What of this node's share is not here; lanes that are not whole do not count."""
        catalog, lanes = self._store.catalog(self.snapshot), range(self._lanes)
        torn = [lane for lane in lanes if self._store.lanes.sealed(lane, self.snapshot) is None]
        whole = {(lane, rotation) for lane in torn for rotation in seat.group.data_rotations(seat.position)}
        kept = {(p.lane, p.rotation) for p in catalog.parity} if catalog is not None else set()
        rotations = seat.group.parity_rotations(seat.position)
        whole |= {(lane, rotation) for lane in lanes for rotation in rotations} - kept
        places: set[Place] = self._store.damaged.get(self.snapshot, set())
        single = damages(place for place in places if place[:2] not in whole)
        if len(single) + len(whole) > DAMAGES_MAX:
            single, whole = (), whole | {place[:2] for place in places}
        return (*single, *(Damage(lane, rotation, 0, STRIPES_MAX) for lane, rotation in sorted(whole)))

    def _look_at(self, snapshot: SnapshotId, place: Place) -> None:
        """Somebody found this chunk of this node damaged: if it is, nobody gets it any more."""
        part = self._store.my_part(snapshot, *place)
        if part is not None and part[0] and checksum(part[0]) != part[1]:
            lane, rotation, stripe = place
            log("chunk_damaged", version=snapshot.version, lane=lane, rotation=rotation, stripe=stripe)
            self._store.mark_damaged(snapshot, (place,))


class _GroupReads(Reads):
    """Reads of one group of the old world, this node's own or another one."""

    def __init__(self, node: Node, gather: Gather, on_damage: Callable[[SnapshotId, Place], None]) -> None:
        super().__init__(node, gather, on_damage, urgent=True)
        m = node.membership
        self.catalog = Catalog(m.restore or SnapshotId(-1, -1, -1), m.lanes, [], [])
        self.bad: dict[int, tuple[Damage, ...]] = {}
        """What its holders say that they lack."""

    def known(self, snapshot: SnapshotId) -> Catalog | None:
        return self.catalog if snapshot == self.catalog.snapshot else None

    def sight(self, unit: UnitDescriptor, distrusted: dict[int, list[Damage]]) -> Sight:
        seen = super().sight(unit, distrusted)
        bad = {p: (*seen.bad.get(p, ()), *self.bad.get(p, ())) for p in {*seen.bad, *self.bad}}
        return msgspec.structs.replace(seen, bad=bad)
