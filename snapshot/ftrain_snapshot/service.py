"""The daemon's doors: agents and workers of this node on a unix socket, other daemons on TCP.

Requests are small and answered in order; what takes long (reserve, wait_restored) is answered when it is done,
without holding up others. Peers come in by peer_door.py.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections import deque
from pathlib import Path

from ftrain_snapshot import messages as m
from ftrain_snapshot.beacons import Beacons
from ftrain_snapshot.client import SOCKET_NAME
from ftrain_snapshot.clients import Client
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import ArenaTooSmall, ProtocolError, SnapshotError
from ftrain_snapshot.frames import bind_unix, is_same_user
from ftrain_snapshot.gate_keeper import GateKeeper
from ftrain_snapshot.guest import Guest
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.lines import Lines
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Task, Timer, Work
from ftrain_snapshot.membership import Membership
from ftrain_snapshot.peer_door import PeerDoor
from ftrain_snapshot.placement import check_groups
from ftrain_snapshot.probe import Probes
from ftrain_snapshot.session import Session
from ftrain_snapshot.status import DaemonStatus, Levels, Volume
from ftrain_snapshot.store import Store
from ftrain_snapshot.tls import Tls
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import OriginHello, PeerHello
from ftrain_snapshot.worlds import check_origin, is_same_share

CLIENTS_MAX = 256
START_SECONDS = 20.0
"""How much longer than a later one the first agent may take: on a busy machine it is still coming itself."""
LANES_MAX = ControlPage.LANES_MAX


class Service:
    """The daemon: its loop, its store, its clients, and the session of its current generation."""

    def __init__(
        self, *, node_dir: Path, host: str, port: int, secret: bytes, grace_seconds: float, tls: Tls | None = None
    ) -> None:
        self.loop = Loop()
        self.lines = Lines(self.loop, secret, tls)
        self._node_dir, self._grace_seconds = node_dir, grace_seconds
        listener = socket.create_server((host, port), backlog=128)
        self.port: int = listener.getsockname()[1]
        self._beacons = Beacons(self.loop, secret, host, self.port)
        self._probes = Probes(self.loop, self.lines, self._beacons)
        self._door = PeerDoor(self.loop, self.lines, listener, adopt=self._adopt, on_ping=self._probes.adopt)
        self._page = ControlPage(node_dir, create=True)
        self._page.close_gate()
        self._store = Store(node_dir)
        self._session: Session | None = None
        self._guest: Guest | None = None
        """What there is instead of a session while the node has no position."""
        self._clients: set[Client] = set()
        self._waiting: list[tuple[Client, int]] = []
        self._early: deque[tuple[Client, m.Request]] = deque(maxlen=CLIENTS_MAX)
        """Reads asked of a daemon that was just restarted, and is not configured yet."""
        self._deferred: deque[tuple[Client, m.Request]] | None = deque()
        self._reserving: list[tuple[Client, Task]] = []
        self._taken_before = 0
        self._total_before = Volume()
        self._skipped = 0
        self._forsaken_by_agent = False
        self._unix = bind_unix(node_dir / SOCKET_NAME)
        self._unix.setblocking(False)
        self.loop.watch(self._unix, self._on_unix)
        self._grace: Timer | None = self.loop.later(START_SECONDS + grace_seconds, self._forsaken)

    def run(self) -> None:
        """Serve until asked to end; then remove all files. An error leaves them to the next daemon, as a kill does."""
        self.loop.spawn(self._attach())
        self.loop.run()
        self._close()

    def _attach(self) -> Work:
        """Look at what an earlier daemon left; requests wait meanwhile."""
        yield from self._store.attach()
        deferred, self._deferred = self._deferred or deque(), None
        for client, request in deferred:
            if not client.closed:
                self.on_request(client, request)

    def _close(self) -> None:
        if (serving := self._session or self._guest) is not None:
            serving.close()
        self._probes.close()
        self._beacons.close()
        self._door.close()
        for client in list(self._clients):
            client.close()
        self.loop.forget(self._unix)
        self._unix.close()
        self.loop.close()
        self._page.close()
        self._store.remove_files()
        (self._node_dir / SOCKET_NAME).unlink(missing_ok=True)
        if self._forsaken_by_agent:
            shutil.rmtree(self._node_dir, ignore_errors=True)
        for folder in (self._node_dir, self._node_dir.parent):
            with contextlib.suppress(OSError):  # the agent's files are still there
                folder.rmdir()

    # Clients.

    def _on_unix(self, readable: bool, writable: bool) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._unix.accept()
            if len(self._clients) >= CLIENTS_MAX or not is_same_user(sock):
                sock.close()
                return
            self._clients.add(Client(self.loop, sock, self.on_request, self.on_client_closed))

    def on_client_closed(self, client: Client) -> None:
        """An agent that has gone starts the grace time; a worker may have sealed without a word."""
        self._clients.discard(client)
        self._waiting = [(c, g) for c, g in self._waiting if c is not client]
        if client.role == "worker" and self._session is not None:
            self._session.protect.scan()
        self._count_agents()

    def _count_agents(self) -> None:
        if any(client.role == "agent" for client in self._clients):
            if self._grace is not None:
                self._grace.cancel()
                self._grace = None
        elif self._grace is None:
            self._grace = self.loop.later(self._grace_seconds, self._forsaken)

    def _forsaken(self) -> None:
        """No agent came back: what the last one left in the node's folder is nobody's."""
        log("forsaken", grace_seconds=self._grace_seconds)
        self._forsaken_by_agent = True
        self.loop.stop()

    def on_request(self, client: Client, request: m.Request) -> None:
        """Carry out one request."""
        if self._deferred is not None and not isinstance(request, m.ClientHello | m.Shutdown):
            self._deferred.append((client, request))
            return
        match request:
            case m.ClientHello(role):
                client.role = role
                self._count_agents()
            case m.Configure(membership):
                client.answer(self._configure(membership))
            case m.GetInventory(urgent):
                if urgent:
                    self.lines.hurry()
                sealed = self._gate.newest_of_positions() if self._gate is not None else ()
                client.answer(m.InventoryReply(Inventory(self._holdings(), sealed)))
            case m.GetStatus():
                client.answer(m.StatusReply(self._status()))
            case m.Shutdown():
                client.answer(m.Done())
                self.loop.stop()
            case m.Reserve(lane, data_bytes):
                self._reserving = [(c, task) for c, task in self._reserving if not task.done]
                self._reserving.append((client, self.loop.spawn(self._reserve(client, lane, data_bytes))))
            case m.WaitRestored(generation):
                self._waiting.append((client, generation))
                self._answer_waiting()
            case m.Skipped():
                self._skipped += 1
            case m.Probe():
                self._probes.measure(request, client.answer)
            case _:
                self._on_snapshot_request(client, request)

    def _on_snapshot_request(
        self,
        client: Client,
        request: m.Captured | m.Sealed | m.Skip | m.Verify | m.Pin | m.Unpin | m.GetUnits | m.Read,
    ) -> None:
        """What the session of a generation takes care of, once there is one."""
        match request:
            case m.Captured(lane, snapshot) | m.Sealed(lane, snapshot):
                if self._session is not None:
                    self._session.protect.progress(lane, snapshot)
            case m.Skip(snapshot):
                if self._session is not None:
                    self._session.skip(snapshot)
            case m.Verify() if self._session is not None:
                self._session.scrub.verify(client.answer)
            case m.Pin(version):
                if self._gate is not None:
                    self._gate.pin(version)
                client.answer(m.Done())
            case m.Unpin(snapshot):
                if self._gate is not None:
                    self._gate.unpin(snapshot)
                client.answer(m.Done())
            case m.GetUnits(snapshot) if self._session is not None:
                self._session.answer_units(snapshot, client.answer)
            case m.Read() if self._session is not None:
                self._session.answer_read(request, client.answer)
            case m.GetUnits() | m.Read():
                self._early.append((client, request))
            case m.Verify():
                client.answer(m.Refused("this daemon serves no generation yet"))

    def _configure(self, membership: Membership) -> m.Reply:
        old = self._session
        newest = self._generation
        if membership.generation < newest:
            return m.Refused(f"generation {membership.generation} is over: {newest} has begun")
        positions = [peer.position for peer in membership.peers]
        if positions != list(range(len(positions))) or membership.position not in (*positions, -1):
            return m.Refused(f"positions {positions} are not those of a job, or lack {membership.position}")
        if not 1 <= membership.lanes <= LANES_MAX:
            return m.Refused(f"{membership.lanes} lanes on a node: 1 to {LANES_MAX} are possible")
        try:
            if membership.groups:
                check_groups(membership.groups, len(positions), membership.parity)
            check_origin(membership)
            session = guest = None
            if membership.position < 0:
                guest = Guest(self.loop, self._store, membership, self.lines)
            else:
                session = Session(self.loop, self._store, self._page, membership, self.lines, self._answer_waiting)
        except SnapshotError as error:
            return m.Refused(str(error))
        if old is not None:
            self._taken_before += old.protect.taken
            self._total_before.add(old.protect.total)
            old.close()
        if self._guest is not None:
            self._guest.close()
        self._session, self._guest = session, guest
        log("configure", generation=membership.generation, position=membership.position, resumed=membership.resumed)
        if not (membership.resumed or is_same_share(self._store.membership, membership)):
            self._give_up_reserving()
        if session is not None:
            session.start()
        self._door.look_again()
        self._answer_waiting()
        early, self._early = list(self._early), deque(maxlen=CLIENTS_MAX)
        for client, request in early:
            self.on_request(client, request)
        return m.Done()

    def _holdings(self) -> tuple[Holding, ...]:
        if self._session is not None:
            self._session.protect.scan()
        return self._store.holdings()

    def _status(self) -> DaemonStatus:
        session = self._session
        if session is None:
            return DaemonStatus(0, False, Levels(), 0, self._skipped, False)
        total = Volume()
        total.add(self._total_before)
        total.add(session.protect.total)
        status = DaemonStatus(
            generation=session.membership.generation,
            gate=False,
            levels=Levels(),
            taken=self._taken_before + session.protect.taken,
            skipped=self._skipped,
            restored=session.repair.restored,
            failure=session.repair.failure,
            last=session.protect.last,
            total=total,
            cpu_seconds=self.lines.usage.cpu_seconds,
            damaged=session.scrub.damaged,
            repaired=session.scrub.repaired,
        )
        return status if self._gate is None else self._gate.complete(status)

    def _reserve(self, client: Client, lane: int, data_bytes: int) -> Work:
        membership = self._store.membership
        if membership is None or not 0 <= lane < membership.lanes or data_bytes < 0:
            client.answer(m.Refused(f"lane {lane} with {data_bytes} bytes is not one of this node's generation"))
            return
        try:
            yield from self._store.reserve(lane, data_bytes)
        except ArenaTooSmall as error:
            client.answer(m.TooSmall(error.needed_bytes, error.available_bytes))
            return
        client.answer(m.Done())

    def _give_up_reserving(self) -> None:
        """What is kept here will be another share: memory that is just being touched may be given back."""
        for client, task in self._reserving:
            if not task.done:
                task.cancel()
                client.answer(m.Refused("the generation that it was reserved for is over"))
        self._reserving.clear()

    def _answer_waiting(self) -> None:
        """Answer those who wait for a generation that is restored, or cannot be."""
        session, waiting = self._session, self._waiting
        if session is None:
            return
        self._waiting = []
        for client, generation in waiting:
            if generation > session.membership.generation:
                self._waiting.append((client, generation))
            elif generation < session.membership.generation:
                client.answer(m.Incomplete(f"generation {generation} is over"))
            elif session.repair.restored:
                client.answer(m.Done())
            elif session.repair.failure:
                client.answer(m.Incomplete(session.repair.failure))
            else:
                self._waiting.append((client, generation))

    # Peers.

    def _adopt(self, connection: Connection, hello: PeerHello | OriginHello) -> bool:
        """Hand a peer to the session of its generation; False: that has not begun here.

        Raises ProtocolError if it is over, or the peer is not of it.
        """
        serving, generation = self._session or self._guest, self._generation
        if serving is None or hello.generation > generation:
            return False
        if hello.generation < generation:
            raise ProtocolError(f"generation {hello.generation} is over")
        serving.adopt(connection, hello)
        return True

    @property
    def _gate(self) -> GateKeeper | None:
        return self._session.gate if self._session is not None else None

    @property
    def _generation(self) -> int:
        """The newest that was told of; -1: none."""
        serving = self._session or self._guest
        return -1 if serving is None else serving.membership.generation
