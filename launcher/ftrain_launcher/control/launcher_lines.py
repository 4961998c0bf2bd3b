"""The controller's end of the lines to launchers: hosts that would join, nodes that run or are gone, signals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from aiohttp import WSMsgType, web

from ftrain_launcher import handshake
from ftrain_launcher.control.launchers import Launchers, refusal
from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.engine_messages import (
    EngineHello,
    FromEngine,
    JobEnded,
    Knock,
    Offer,
    ReapNode,
    StartNode,
    Welcome,
)
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Command, Event, HostCame
from ftrain_launcher.job.policy import EXIT_USAGE
from ftrain_launcher.jobs import JobFolder, JobRecord
from ftrain_launcher.terminal import announce

_decode = msgspec.msgpack.Decoder(FromEngine).decode


class LauncherLines:
    """One controller's."""

    def __init__(
        self,
        folder: JobFolder,
        record: JobRecord,
        coordinator: Coordinator,
        launchers: Launchers,
        submit: Callable[[Event], None],
        repeat: Callable[[list[Command]], None],
        ended: asyncio.Event,
    ) -> None:
        """``repeat`` carries out what a launcher may not have heard."""
        self._folder, self._record, self._coordinator, self._launchers = folder, record, coordinator, launchers
        self._submit, self._repeat, self._ended = submit, repeat, ended

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """One launcher's, until it closes."""
        secret = self._folder.secret.read_text() if self._record.open else None
        silence_seconds = self._record.config.heartbeat_timeout_seconds
        socket, admitted = await handshake.accept(
            request, self._folder.line_key(), self._record.salt, secret=secret, silence_seconds=silence_seconds
        )
        if not admitted:
            return socket
        outbox = Outbox(socket, request.transport)
        self._launchers.add(outbox)
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    self._hear(outbox, _decode(message.data))
        except msgspec.DecodeError as error:
            announce(f"a message of a launcher cannot be read ({error}): its connection is closed")
        except ConnectionError:  # while a ping was answered
            pass
        finally:
            self._launchers.remove(outbox)
            await outbox.close()
        return socket

    def _hear(self, outbox: Outbox, message: FromEngine) -> None:
        if self._ended.is_set():
            outbox.put(JobEnded(self._coordinator.exit_code, self._coordinator.exit_message))
            return
        match message:
            case Knock(offer):
                reason = self._refusal(offer)
                outbox.put(JobEnded(EXIT_USAGE, reason) if reason else Welcome(msgspec.json.encode(self._record)))
            case EngineHello():
                self._greet(outbox, message)
            case _:
                self._submit(message)

    def _greet(self, outbox: Outbox, hello: EngineHello) -> None:
        """Take note of what a launcher runs, and repeat what it may not have heard."""
        nodes = self._coordinator.nodes
        for name in hello.nodes:
            self._launchers.runs(outbox, name)
            if name in nodes and nodes[name].gone:
                self._repeat([ReapNode(name)])
        if hello.offer is None:
            self._launchers.provides(outbox)
            for node in nodes.values():
                if node.state == "starting" and node.name not in hello.nodes:
                    self._repeat([StartNode(node.name)])
        elif not hello.nodes:
            self._launchers.provides(outbox, hello.offer.launcher)
            self._submit(HostCame(hello.offer.launcher, hello.offer.hostname, hello.offer.node_rank))

    def _refusal(self, offer: Offer) -> str | None:
        if not self._record.config.hosts:
            return f"job {self._record.name} emulates its nodes on {self._record.hostname}: no host can join it"
        rank = offer.node_rank
        if rank is not None and any(n.meant_for == rank and not n.gone for n in self._coordinator.nodes.values()):
            return f"--node-rank {rank} was given to another host already"
        return refusal(offer, self._record.config)
