"""One generation, as one daemon serves it: its connections, its protecting, its restoring, and at position 0 the gate.

A new generation is a new session. Closing the old one closes its sockets and cancels its work, in the one thread
that does everything: nothing of it can write into a slot afterwards (fencing).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

from ftrain_snapshot.codec import codec_for
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.degraded import Reads
from ftrain_snapshot.errors import ProtocolError
from ftrain_snapshot.far_reads import FarReads
from ftrain_snapshot.fetch import Fetches
from ftrain_snapshot.ledger import Exposure, Gate, Word
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.messages import Holding, Levels, Membership, Peer, SnapshotId
from ftrain_snapshot.node import Node
from ftrain_snapshot.pin import Pin
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.protect import Protect
from ftrain_snapshot.relay import Relays
from ftrain_snapshot.repair import Repair
from ftrain_snapshot.scrub import Scrub
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection, dial
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
    Mismatch,
    PeerHello,
    PeerMessage,
    PeerWelcome,
    PositionSealed,
    PositionStored,
    Restoring,
    SkipNotice,
)

GATE = 0
"""The position whose daemon keeps the gate."""
START_PROTECTED_SECONDS = 10.0
"""How long the gate waits for the parity of the generation's start to be rebuilt before it lets snapshots begin."""
REDIAL_SECONDS_MIN, REDIAL_SECONDS_MAX = 0.05, 1.0


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
        self.exposure = Exposure()
        """How long the job has been exposed, at the gate."""
        self._loop, self._store, self._page, self._lines = loop, store, page, lines
        self._position = membership.position
        self._group = group_of(self._position, membership.grouping, membership.parity)
        self._dialling: dict[int, Connection] = {}
        self._timers: dict[int, Timer] = {}
        self._skipped: deque[SnapshotId] = deque(maxlen=16)
        self._closed = False
        self._gate: Gate | None = None
        self._word: Word | None = None
        self._patience: Timer | None = None
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
        )
        self.fetches = Fetches(node)
        self.protect = Protect(node, self.fetches)
        self.repair = Repair(node, changed)
        self.relays = Relays(node, self.repair.gather)
        self.scrub = Scrub(node, self.repair.gather, self._is_busy)
        self.far_reads = FarReads(node, GATE, Reads(node, self.repair.gather, self.scrub.look_at))

    # Life.

    def start(self) -> None:
        """Drop what is newer than the start (unless resumed), connect, restore."""
        m = self.membership
        ticket, slot, floor = self._page.pending()
        self._page.close_gate(spent=not m.resumed)
        if not m.resumed:
            self._store.drop_newer(m.restore if self._same_share() else None)
            slot, floor = -1, -1
        self._store.remember(m)
        self._lines.limit(m.protect_bytes_per_second)
        if self._position == GATE:
            self._gate = Gate(
                nodes=len(m.peers),
                parity=m.parity,
                generation=m.generation,
                restore=m.restore,
                word=Word(ticket, slot, False, floor),
                pin=Pin(every=m.durable_every, newest=_written(m)),
            )
            self._patience = self._loop.later(START_PROTECTED_SECONDS, self._give_up_start)
        under_way = m.resumed and any(
            header.snapshot.generation == m.generation for _, _, header in self._store.scan(m.lanes)
        )
        self.protect.adopt()
        for peer in self._peers():
            if peer.position < self._position:
                self._dial(peer, REDIAL_SECONDS_MIN)
        self.repair.start(under_way=under_way)
        self.scrub.start()
        self._announce()

    def _same_share(self) -> bool:
        """Whether what is stored here is of this position, in this placement; else it is of no use."""
        new, old = self.membership, self._store.membership
        if old is None or (old.position, old.lanes, old.parity) != (new.position, new.lanes, new.parity):
            return False
        return len(old.peers) == len(new.peers) and self._store.group == self._group

    def close(self) -> None:
        """Fence this generation off."""
        self._closed = True
        if self._patience is not None:
            self._patience.cancel()
        self.far_reads.close()
        self.scrub.close()
        self.relays.close()
        self.repair.close()
        self.protect.close()
        for timer in self._timers.values():
            timer.cancel()
        for connection in [*self.links.values(), *self._dialling.values()]:
            connection.close("the generation is over")
        self.links.clear()

    def levels(self) -> Levels:
        """The job's levels, at the gate."""
        return self._gate.levels() if self._gate is not None else Levels()

    @property
    def pinned(self) -> SnapshotId | None:
        """What is kept for storage, at the gate."""
        return self._gate.pin.snapshot if self._gate is not None else None

    @property
    def in_flight(self) -> bool:
        """Whether a snapshot has been begun that is not decided yet, at the gate."""
        return self._gate is not None and self._gate.in_flight

    def unpin(self, snapshot: SnapshotId) -> None:
        """It need not be kept for storage any more."""
        if self._gate is not None:
            self._gate.pin.release(snapshot)
            self._advance()

    def exposed_seconds(self) -> float:
        """How long one more loss than is covered would have been fatal by now, at the gate; 0: it would not."""
        return self.exposure.seconds(time.monotonic())

    def _is_busy(self) -> bool:
        """Something that matters more than reading what is stored again is under way."""
        return self.repair.under_way or self.protect.under_way

    @property
    def is_gate(self) -> bool:
        """Whether this daemon keeps the gate."""
        return self._gate is not None

    # Connections: the higher position dials.

    def _peers(self) -> list[Peer]:
        """All whom this daemon talks to: its group and the gate; the gate talks to all."""
        near = {GATE, *self._group.members} - {self._position}
        return [
            p
            for p in self.membership.peers
            if p.position != self._position and (p.position in near or self._position == GATE)
        ]

    def _dial(self, peer: Peer, again_seconds: float) -> None:

        def on_proved(connection: Connection) -> None:
            me = self.membership.peers[self._position]
            connection.send(PeerHello(self.membership.generation, self._position, me.node, peer.position))

        def on_message(connection: Connection, message: PeerMessage, body: memoryview) -> None:
            if not isinstance(message, PeerWelcome) or message.generation != self.membership.generation:
                raise ProtocolError("a welcome was due")
            self._dialling.pop(peer.position, None)
            self._link(peer.position, connection)

        def on_closed(connection: Connection, reason: str) -> None:
            self._dialling.pop(peer.position, None)
            self._unlink(peer.position, connection, reason)
            self._redial(peer, REDIAL_SECONDS_MIN if connection.welcomed else again_seconds)

        try:
            connection = dial(self._loop, peer.host, peer.port, self._lines)
        except (OSError, ValueError) as error:  # no address, or none that can be looked up
            log("dial_failed", peer=peer.position, error=error)
            self._redial(peer, again_seconds)
            return
        connection.on_proved, connection.on_message, connection.on_closed = on_proved, on_message, on_closed
        self._dialling[peer.position] = connection

    def _redial(self, peer: Peer, wait_seconds: float) -> None:
        if not self._closed:
            again = min(2 * wait_seconds, REDIAL_SECONDS_MAX)
            self._timers[peer.position] = self._loop.later(wait_seconds, lambda: self._dial(peer, again))

    def adopt(self, connection: Connection, hello: PeerHello) -> None:
        """A peer of this generation has dialled. Raises ProtocolError if it is not who it must be."""
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
        if self._gate is not None:
            self._gate.left(position)
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
            case Announce() | PositionSealed() | PositionStored() | Abandon() | SkipNotice() if self._gate:
                self._at_gate(position, message)
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

    # The gate.

    def _announce(self) -> None:
        """Tell the gate what is here; it takes a repeated telling as a sign that something was cut."""
        linked = all(p in self.links for p in self._group.members if p != self._position)
        self._tell_gate(Announce(tuple(map(self._as_checked, self._store.holdings())), linked, tuple(self._skipped)))

    def _as_checked(self, holding: Holding) -> Holding:
        """Parity of what is being restored counts once it was looked at: `repair` says so, then."""
        unchecked = holding.snapshot == self.membership.restore and not self.repair.stored
        return msgspec.structs.replace(holding, parity=False) if unchecked else holding

    def _tell_gate(self, message: PeerMessage) -> None:
        """Lost if the gate is not connected: it learns the facts from the next announcement."""
        if self._gate is not None:
            self._at_gate(self._position, message)
        elif (link := self.links.get(GATE)) is not None:
            link.send(message)

    def _at_gate(self, position: int, message: PeerMessage) -> None:
        gate = self._gate
        if gate is None:
            return
        match message:
            case Announce():
                gate.arrived(position, message.holdings, linked=message.linked)
                for snapshot in message.skipped:
                    gate.skip(snapshot)
            case PositionSealed():
                gate.sealed(position, message.snapshot, message.digests)
            case PositionStored():
                gate.stored(position, message.snapshot)
            case Abandon():
                log("snapshot_abandoned", version=message.snapshot.version, reason=message.reason)
                gate.abandon(message.snapshot)
            case SkipNotice():
                gate.skip(message.snapshot)
        self._advance()

    def _give_up_start(self) -> None:
        if self._gate is not None and not self._closed:
            self._gate.give_up_start()
            self._advance()

    def _advance(self) -> None:
        """Carry out what follows at the gate."""
        assert self._gate is not None
        word, dropped = self._gate.advance()
        for event, version in self._gate.pin.news():
            log(event, version=version)
        self.exposure.update(self._gate.exposed, time.monotonic())
        if word != self._word:
            if word.open:
                self._page.open_gate(word.ticket, word.slot, word.floor)
            else:
                self._page.close_gate(spent=word.slot == -1)
            self._word = word
        for snapshot in dropped:
            self._drop(snapshot)
            for link in self.links.values():
                link.send(Drop(snapshot))


def _written(m: Membership) -> int | None:
    """The newest version that need not be written again: what is done anew from an older start is."""
    if m.durable_newest is None or m.restore is None:
        return m.durable_newest
    return min(m.durable_newest, m.restore.version)
