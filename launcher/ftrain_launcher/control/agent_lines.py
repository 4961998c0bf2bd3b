"""The controller's end of the lines to agents: who is connected, what each last said, what they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import WSMsgType, web

from ftrain_launcher import handshake
from ftrain_launcher.control import views
from ftrain_launcher.control.detection import Detection
from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.from_agent import FromAgent, Heartbeat, Join, Recalled, ReplicaDigests, WorkerExit
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Event, Joined, Left
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.job.progress import ProgressFilter
from ftrain_launcher.jobs import JobFolder, JobRecord
from ftrain_launcher.packing import Packer
from ftrain_launcher.protocol import PROTOCOL_VERSION
from ftrain_launcher.questions import Reply
from ftrain_launcher.terminal import announce
from ftrain_launcher.to_agent import Form, Stand, ToAgent

_JOIN_SECONDS = 10.0
"""How long an agent may take to say who it is."""

_decode = msgspec.msgpack.Decoder(FromAgent).decode


class AgentLines:
    """One controller's."""

    def __init__(
        self,
        folder: JobFolder,
        record: JobRecord,
        coordinator: Coordinator,
        submit: Callable[[Event], None],
        hear_of: Callable[[int], None],
        ended: asyncio.Event,
    ) -> None:
        """``hear_of`` takes the newest term that an agent knows of: another controller's, perhaps."""
        self._folder, self._record, self._coordinator = folder, record, coordinator
        self._submit, self._hear_of, self._ended = submit, hear_of, ended
        self._observations: dict[str, views.Observation] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._connections_made = int(time.time() * 1000)
        self._packer = Packer()
        self._progress = ProgressFilter()
        self.requests = Requests(self._outboxes)
        """What agents are asked beside everything else."""
        self.detection = Detection(coordinator, self.requests, submit)
        """Judges what they report of their workers."""

    @property
    def observations(self) -> Mapping[str, views.Observation]:
        """What was last heard of each node."""
        return self._observations

    @property
    def outboxes(self) -> Mapping[str, Outbox]:
        """Those that are connected."""
        return self._outboxes

    # ---- what agents are told

    def tell(self, node: str, message: ToAgent) -> None:
        """Unless it is not connected: it is told when it comes back."""
        outbox = self._outboxes.get(node)
        if outbox:
            outbox.put(self._packer.pack(message) if isinstance(message, Form) else message)

    def hang_up(self, silent_since: float) -> None:
        """End the lines of those that were not heard after this time."""
        for node in list(self._outboxes):
            if self._observations[node].seen < silent_since:
                self._outboxes[node].abort()

    def excuse(self, seconds: float) -> None:
        """Nobody could be heard for so long: that was nobody's silence."""
        for observation in self._observations.values():
            observation.seen += seconds

    async def close(self) -> None:
        """End all lines."""
        await self.detection.close()
        for outbox in list(self._outboxes.values()):  # an agent may open a line meanwhile
            await outbox.close()

    # ---- one line

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One agent's, until it closes."""
        socket, admitted = await handshake.accept(request, self._folder.line_key(), self._record.salt)
        join = await self._greet(socket) if admitted else None
        if join is None:
            return socket
        self._connections_made += 1
        connection = self._connections_made
        outbox = Outbox(socket, request.transport)
        self._outboxes[join.node] = outbox
        self._observations[join.node] = views.Observation(
            agent_pid=join.agent_pid,
            daemon_pid=join.daemon_pid,
            generation=join.generation,
            ranks=join.ranks,
            seen=time.time(),
        )
        self._submit(Joined(join, connection))
        try:
            async for message in socket:
                if self._outboxes.get(join.node) is not outbox:
                    break  # The agent has made a newer one.
                if message.type is WSMsgType.BINARY:
                    self._hear(join.node, _decode(message.data))
        except msgspec.DecodeError as error:
            announce(f"a message of {join.node} cannot be read ({error}): its connection is closed")
        except ConnectionError:  # while a ping was answered
            pass
        finally:
            if self._outboxes.get(join.node) is outbox:
                del self._outboxes[join.node]
            await outbox.close()
            if not self._ended.is_set():
                self._submit(Left(join.node, connection))
        return socket

    async def _greet(self, socket: web.WebSocketResponse) -> Join | None:
        """Who is there; None: nobody that this controller can work with, or it gives way to another one."""
        if self._record.candidate is not None:
            await socket.send_bytes(msgspec.msgpack.encode(Stand(self._coordinator.term, leads=True)))
        first = await socket.receive(timeout=_JOIN_SECONDS)
        join = _decode(first.data) if first.type is WSMsgType.BINARY else None
        if not isinstance(join, Join):
            return None
        if join.protocol != PROTOCOL_VERSION:
            announce(
                f"{join.node} speaks protocol {join.protocol}, not {PROTOCOL_VERSION}: install one ftrain everywhere"
            )
            return None
        self._hear_of(join.term)
        return None if self._ended.is_set() else join

    def _hear(self, node: str, message: FromAgent) -> None:
        seen = self._observations[node]
        seen.seen = time.time()
        if isinstance(message, Heartbeat):
            self._take_heartbeat(seen, message)
        elif isinstance(message, Reply):
            self.requests.take(message)
        elif isinstance(message, NodeReport):
            self.detection.take(message)
        elif isinstance(message, ReplicaDigests):
            self.detection.take_digests(message)
        elif not isinstance(message, Join | Recalled):
            if isinstance(message, WorkerExit):
                seen.take_exit(message)
            self._submit(message)

    def _take_heartbeat(self, seen: views.Observation, message: Heartbeat) -> None:
        seen.generation = message.generation
        seen.ranks, seen.daemon_pid = message.ranks, message.daemon_pid
        if message.daemon is not None:
            seen.take_daemon(message.daemon_pid, message.daemon, seen.seen)
        if message.inventory is not None:
            seen.take_inventory(message.inventory, seen.seen)
        status = message.daemon
        if status is None or not status.gate or status.generation != self._coordinator.generation:
            return
        if self._coordinator.phase is Phase.RUNNING:
            moves = self._coordinator.quarantine.moves or self._coordinator.halting.under_way
            progress = self._progress.take(status, self._coordinator.durable, seen.seen, moves=moves)
            if progress is not None:
                self._submit(progress)
