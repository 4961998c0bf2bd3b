"""One generation, as one daemon serves it: its connections, its protecting, its restoring, and at position 0 the gate.

A new generation is a new session. Closing the old one closes its sockets and cancels its work, in the one thread
that does everything: nothing of it can write into a slot afterwards (fencing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.degraded import Answer, Reads
from ftrain_snapshot.dials import Dials
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.far_reads import FarReads
from ftrain_snapshot.fetch import Fetches
from ftrain_snapshot.gate_keeper import GATE, GateKeeper
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.ledger import Gate, Word
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.messages import Read
from ftrain_snapshot.node import Node
from ftrain_snapshot.old_world import OldWorld
from ftrain_snapshot.pin import Pin, newest_written
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.protect import Protect
from ftrain_snapshot.relay import Relays
from ftrain_snapshot.repair import Repair
from ftrain_snapshot.scrub import Scrub
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import (
    Abandon,
    Announce,
    Chunk,
    Describe,
    Drop,
    FarAnswer,
    FarFailed,
    FarRead,
    Fetch,
    FetchFailed,
    LetGo,
    Mismatch,
    OriginHello,
    PeerHello,
    PeerMessage,
    PeerWelcome,
    PositionSealed,
    PositionStored,
    Restoring,
    SkipNotice,
    ToGate,
)
from ftrain_snapshot.words import SnapshotId


class Session:
    """Everything that a daemon does for one generation."""

    def __init__(
        self,
        loop: Loop,
        store: Store,
        page: ControlPage,
        membership: Membership,
        lines: Lines,
        changed: Callable[[], None],
    ) -> None:
        """Raises SnapshotError if the membership asks for what cannot be; nothing has begun then."""
        self.membership = membership
        self.links: dict[int, Connection] = {}
        self.gate: GateKeeper | None = None
        """At position 0, once the generation has begun."""
        self._loop, self._store, self._page, self._lines = loop, store, page, lines
        self._position = membership.position
        self._group = group_of(self._position, membership.grouping, membership.parity)
        self._dials = Dials(
            loop, lines, membership.generation, hello=self._hello, on_welcome=self._link, on_closed=self._unlink
        )
        self._skipped: deque[SnapshotId] = deque(maxlen=16)
        self._closed = False
        codec = codec_for(membership.parity, membership.codec) if membership.parity else None
        if codec is not None:
            codec.rows(self._group.data)
        node = Node(
            loop=loop,
            store=store,
            membership=membership,
            group=self._group,
            codec=codec,
            links=self.links,
            tell_gate=self._tell_gate,
            hurry=lines.hurry,
            begin_snapshot=lines.begin_snapshot,
        )
        self.fetches = Fetches(node)
        self.protect = Protect(node, self.fetches)
        self.repair = Repair(node, changed)
        self.relays = Relays(node, self.repair.gather)
        self.scrub = Scrub(node, self.repair, self._is_busy)
        self.far_reads = FarReads(node, GATE, Reads(node, self.repair.gather, self.scrub.look_at))
        self.old_world = OldWorld(loop, store, membership, lines) if membership.origin is not None else None
        """What the generation starts from, if another world captured it, while it may be needed."""

    # Life.

    def start(self) -> None:
        """Drop what is newer than the start (unless resumed), connect, restore."""
        m = self.membership
        ticket, slot, floor = self._page.pending()
        self._page.close_gate(spent=not m.resumed)
        if not m.resumed:
            slot, floor = -1, -1
        self._store.enter(m)
        if m.restore is not None or m.origin is not None:
            self._lines.hurry()  # who reads it needs all of them connected
        origin = m.origin.snapshot if m.origin is not None and m.origin.snapshot in self._store.kept() else None
        self._lines.limit(m.protect_bytes_per_second)
        if self._position == GATE:
            self.gate = self._keep_gate(Word(ticket, slot, False, floor), origin)
        under_way = m.resumed and any(
            header.snapshot.generation == m.generation for _, _, header in self._store.lanes.scan(m.lanes)
        )
        self.protect.adopt()
        for peer in self._peers():
            if peer.position < self._position:
                self._dials.dial(peer)
        if self.old_world is not None and origin is not None:
            self.old_world.start()
        self.repair.start(under_way=under_way)
        self.scrub.start()
        self._announce()

    def _keep_gate(self, word: Word, origin: SnapshotId | None) -> GateKeeper:
        m = self.membership
        gate = Gate(
            nodes=len(m.peers),
            parity=m.parity,
            generation=m.generation,
            restore=m.restore,
            origin=origin,
            word=word,
            pin=Pin(every=m.durable_every, newest=newest_written(m)),
        )
        return GateKeeper(self._loop, self._page, gate, self.links, drop=self._drop, let_go=self._let_go)

    def close(self) -> None:
        """Fence this generation off."""
        self._closed = True
        if self.gate is not None:
            self.gate.close()
        if self.old_world is not None:
            self.old_world.close()
        self.far_reads.close()
        self.scrub.close()
        self.relays.close()
        self.repair.close()
        self.protect.close()
        self._dials.close()
        for connection in list(self.links.values()):
            connection.close("the generation is over")
        self.links.clear()

    def answer_units(self, snapshot: SnapshotId, answer: Answer) -> None:
        """What a snapshot consists of, of this world or of the one before."""
        if self.old_world is not None and snapshot == self.old_world.snapshot:
            self.old_world.answer_units(answer)
        else:
            self.far_reads.answer_units(snapshot, answer)

    def answer_read(self, request: Read, answer: Answer) -> None:
        """Any bytes of it."""
        if self.old_world is not None and request.snapshot == self.old_world.snapshot:
            self.old_world.answer_read(request, answer)
        else:
            self.far_reads.answer_read(request, answer)

    def _is_busy(self) -> bool:
        """Something that matters more than reading what is stored again is under way."""
        reading = self.old_world is not None and self.old_world.is_read
        return self.repair.under_way or self.protect.under_way or reading

    # Connections: the higher position dials.

    def _peers(self) -> list[Peer]:
        """All whom this daemon talks to: its group and the gate; the gate talks to all."""
        near = {GATE, *self._group.members} - {self._position}
        return [
            p
            for p in self.membership.peers
            if p.position != self._position and (p.position in near or self._position == GATE)
        ]

    def _hello(self, peer: Peer) -> PeerHello:
        me = self.membership.peers[self._position]
        return PeerHello(self.membership.generation, self._position, me.node, peer.position)

    def adopt(self, connection: Connection, hello: PeerHello | OriginHello) -> None:
        """A peer of this generation has dialled. Raises ProtocolError if it is not who it must be."""
        if isinstance(hello, OriginHello):
            if self.old_world is None:
                raise ProtocolError(f"snapshot {hello.snapshot.version} of another world is not kept here")
            self.old_world.adopt(connection, hello)
            return
        expected = {p.position: p.node for p in self._peers() if p.position > self._position}
        if expected.get(hello.position) != hello.node or hello.to_position != self._position:
            raise ProtocolError(f"node {hello.node} is not position {hello.position} of this generation")
        position = hello.position
        if (old := self.links.get(position)) is not None:
            old.close("it has connected anew")
        connection.on_closed = lambda c, reason: self._unlink(position, c, reason)
        connection.send(PeerWelcome(self.membership.generation))
        self._link(position, connection)

    def _link(self, position: int, connection: Connection) -> None:
        connection.welcomed = True
        connection.on_message = lambda _, message, body: self._on_message(position, message, body)
        self.links[position] = connection
        log("peer_linked", position=position, generation=self.membership.generation)
        if position in self._group.members:
            self.protect.on_link(position)
            self.repair.on_link(position)
            self.relays.on_link(position)
            self.scrub.on_link(position)
        self._announce()

    def _unlink(self, position: int, connection: Connection, reason: str) -> None:
        if self.links.get(position) is not connection:
            return
        del self.links[position]
        if self._closed:
            return
        log("peer_lost", position=position, reason=reason)
        self.far_reads.on_lost(position)
        if position in self._group.members:
            self.fetches.on_lost(position)
            self.repair.on_lost(position)
        if self.gate is not None:
            self.gate.on_lost(position)
        self._announce()

    # Messages.

    def _on_message(self, position: int, message: PeerMessage, body: memoryview) -> None:
        match message:
            case Chunk(attempt=0) if position in self._group.members:
                self.protect.on_chunk(position, message, body)
            case Chunk() if position in self._group.members:
                (self.fetches if message.attempt < 0 else self.repair.gather).on_chunk(position, message, body)
            case Describe() if position in self._group.members:
                self.protect.on_describe(position, message.unit)
                self.scrub.on_describe(message.unit.snapshot)
            case Restoring() if position in self._group.members:
                self.repair.on_restoring(position, message)
                self.scrub.on_restoring(position, message.snapshot)
            case Fetch() if position in self._group.members:
                (self.relays if message.shares else self.fetches).answer(position, message)
            case FetchFailed() if position in self._group.members:
                (self.fetches if message.attempt < 0 else self.repair.gather).on_fetch_failed(position, message)
            case Mismatch() if position in self._group.members:
                self.scrub.on_mismatch(message)
            case FarRead():
                self.far_reads.on_question(position, message)
            case FarAnswer():
                self.far_reads.on_answer(position, message, body)
            case FarFailed():
                self.far_reads.on_failed(position, message)
            case Drop() if position == GATE:
                self._drop(message.snapshot)
            case LetGo() if position == GATE:
                self._let_go(message.snapshot)
            case Announce() | PositionSealed() | PositionStored() | Abandon() | SkipNotice() if self.gate is not None:
                self.gate.hear(position, message)
            case _:
                raise ProtocolError(f"{type(message).__name__} from position {position} does not belong here")

    def skip(self, snapshot: SnapshotId) -> None:
        """A rank of this node could not capture it."""
        if snapshot.generation == self.membership.generation:
            self._skipped.append(snapshot)
            self._tell_gate(SkipNotice(snapshot))

    def _drop(self, snapshot: SnapshotId) -> None:
        log("snapshot_dropped", version=snapshot.version, generation=snapshot.generation)
        if snapshot.generation == self.membership.generation:
            self.scrub.drop(snapshot)
            self._store.drop(snapshot, self.membership.lanes)
            self.protect.drop(snapshot)

    def _let_go(self, snapshot: SnapshotId) -> None:
        """A snapshot of this world is safe: one of another world is not needed any more."""
        log("origin_let_go", version=snapshot.version, generation=snapshot.generation)
        if self.old_world is not None and self.old_world.snapshot == snapshot:
            self.old_world.close()
            self.old_world = None
        self._store.let_go(snapshot)

    # The gate.

    def _announce(self) -> None:
        """Tell the gate what is here; it takes a repeated telling as a sign that something was cut."""
        linked = all(p in self.links for p in self._group.members if p != self._position)
        kept = self._store.kept()
        held = tuple(self._as_checked(holding) for holding in self._store.holdings() if holding.snapshot not in kept)
        self._tell_gate(Announce(held, linked, tuple(self._skipped), kept))

    def _as_checked(self, holding: Holding) -> Holding:
        """Parity of what is being restored counts once it was looked at: `repair` says so, then."""
        unchecked = holding.snapshot == self.membership.restore and not self.repair.stored
        return msgspec.structs.replace(holding, parity=False) if unchecked else holding

    def _tell_gate(self, message: ToGate) -> None:
        """Lost if the gate is not connected: it learns the facts from the next announcement."""
        if self.gate is not None:
            self.gate.hear(self._position, message)
        elif (link := self.links.get(GATE)) is not None:
            link.send(message)
