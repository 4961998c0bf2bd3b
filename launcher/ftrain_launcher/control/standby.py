"""A candidate for a job's controller that stands by: it follows the journal, and is there for agents that lost theirs.

    controller -- /journal --> this copy             agents that have lost the controller -- /agent --> Election

It becomes the controller once most nodes of the last generation have come and promised to obey nobody older
(`fencing.py`). As long as they are well where they are, nobody comes, and nothing happens here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from ftrain_launcher import handshake, leadership
from ftrain_launcher.control.door import open_door
from ftrain_launcher.control.followers import Follow, Have, Lines, parts
from ftrain_launcher.control.journal_copy import JournalCopy
from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.errors import SecretRefused
from ftrain_launcher.from_agent import FromAgent, Join, Recalled
from ftrain_launcher.job.fencing import Ask, Elected, Election, Nodes, Stale
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.jobs import JobFolder
from ftrain_launcher.leadership import LOOK_EVERY_SECONDS, Leadership, Seen
from ftrain_launcher.line import LINE_ERRORS, open_line
from ftrain_launcher.processes.pidfds import wait_gone
from ftrain_launcher.terminal import announce
from ftrain_launcher.to_agent import Elect, Recall, Stand

_from_agent = msgspec.msgpack.Decoder(FromAgent).decode
_lines = msgspec.msgpack.Decoder(Lines).decode
_OVER: list[Nodes] = [()]
"""Anybody may tell that the job has ended."""


class Standby:
    """One host's, while another one leads."""

    def __init__(self, folder: JobFolder) -> None:
        self.folder, self.record = folder, folder.record()
        candidate = self.record.candidate
        assert candidate is not None
        self._own, self._candidates = candidate, self.record.config.candidates
        self._term = leadership.read(folder).term
        self._election = Election(self._own, len(self._candidates), self._term)
        self.copy = JournalCopy(folder.journal)
        self._following: asyncio.Task[None] | None = None
        self._leader: int | None = None
        self._lines: dict[str, Outbox] = {}
        self._elected: asyncio.Future[Elected | None] = asyncio.get_running_loop().create_future()
        self._told: Stale | None = None

    async def run(self) -> Elected | None:
        """Stand by until this candidate is the controller; None: its launcher is gone."""
        routes = [
            web.get("/agent", self._serve_agent),
            web.get("/journal", self._serve_journal),
            web.get("/api/leader", self._tell_leader),
            web.route("*", "/{other:.*}", self._refuse),
        ]
        runner = open_door(routes, shutdown_timeout_seconds=0.2)
        await runner.setup()
        await web.TCPSite(runner, self.record.controller_host, self.record.controller_port).start()
        tasks = [asyncio.create_task(work) for work in (self._keep_looking(), self._watch_launcher())]
        try:
            ends: list[asyncio.Future[Any]] = [self._elected, *tasks]
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return await self._elected
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.copy.close()  # Whoever leads from here on writes to the same file.
            for outbox in list(self._lines.values()):
                await outbox.close()
            await runner.cleanup()

    async def _watch_launcher(self) -> None:
        await wait_gone(self.record.launcher_pid)
        if not self._elected.done():
            self._elected.set_result(None)

    # ---- the others

    async def _keep_looking(self) -> None:
        """Follow whoever leads; while nobody does, have the copy that knows most."""
        followed: tuple[int, int] | None = None
        try:
            while True:
                seen = await leadership.look(self._candidates, self._own, self.folder.token())
                self._hear_of(max((s.term for s in seen), default=0))
                leader = max((s for s in seen if s.leads and s.term >= self._term), key=lambda s: s.term, default=None)
                follows = self._following is not None and not self._following.done()
                if leader is not None and (not follows or followed != (leader.candidate, leader.term)):
                    await self._stop_following()
                    followed = (leader.candidate, leader.term)
                    self._following = asyncio.create_task(self._follow(leader.candidate))
                    self._send_away()
                elif leader is None and not follows:
                    best = max(seen, key=lambda s: s.knows, default=None)
                    if best is not None and best.knows > self._seen().knows:
                        await self._follow(best.candidate)
                self._poll()
                await asyncio.sleep(LOOK_EVERY_SECONDS)
        finally:
            await self._stop_following()

    def _hear_of(self, term: int) -> None:
        if term > self._term:
            self._term = term
            leadership.write(self.folder, Leadership(term, leads=False))

    def _send_away(self) -> None:
        """Agents that are here may find the controller by now."""
        for outbox in self._lines.values():
            outbox.put(self._stand())

    async def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            self._following = None

    async def _follow(self, candidate: int) -> None:
        """Copy a candidate's journal; of one that leads, for as long as the line holds."""
        endpoint = leadership.endpoints(self._candidates)[candidate]
        key = self.folder.line_key()
        silence_seconds = self.record.config.heartbeat_timeout_seconds / 2
        self._leader = candidate
        try:
            with contextlib.suppress(*LINE_ERRORS, SecretRefused, msgspec.DecodeError):
                async with open_line(endpoint, "/journal", lambda _: key, silence_seconds) as socket:
                    hello = Follow(self._own, self.copy.length, self.copy.digest())
                    await socket.send_bytes(msgspec.msgpack.encode(hello))
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.BINARY:
                            have = await self.copy.take(_lines(message.data))
                            await socket.send_bytes(msgspec.msgpack.encode(Have(have)))
        finally:
            self._leader = None
            await self.copy.close()

    async def _serve_journal(self, request: web.Request) -> web.WebSocketResponse:
        """Another candidate that stands by knows less."""
        socket, admitted = await handshake.accept(request, self.folder.line_key(), self.record.salt)
        if admitted:
            data = self.copy.data()
            for lines in parts(data, 0, len(data)):
                await socket.send_bytes(msgspec.msgpack.encode(lines))
        await socket.close()
        return socket

    async def _tell_leader(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.folder.token()}":
            raise web.HTTPUnauthorized(text="this job's token is wanted")
        return web.Response(body=msgspec.json.encode(self._seen()), content_type="application/json")

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPServiceUnavailable(text="this candidate stands by: another one leads")

    def _seen(self) -> Seen:
        coordinator = self.copy.coordinator
        term = coordinator.term if coordinator is not None else 0
        return Seen(
            candidate=self._own, term=self._term, leads=False, journal_term=term, journal_bytes=self.copy.length
        )

    # ---- agents that have lost their controller

    def _stand(self) -> Stand:
        return Stand(self._term, leads=False, leader=self._leader)

    async def _serve_agent(self, request: web.Request) -> web.WebSocketResponse:
        silence_seconds = self.record.config.heartbeat_timeout_seconds
        socket, admitted = await handshake.accept(
            request, self.folder.line_key(), self.record.salt, silence_seconds=silence_seconds
        )
        if not admitted:
            return socket
        outbox = Outbox(socket, request.transport)
        outbox.put(self._stand())
        node = ""
        try:
            async for message in socket:
                join = _from_agent(message.data) if message.type is WSMsgType.BINARY else None
                if isinstance(join, Join):
                    node = join.node
                    self._lines[node] = outbox
                    self._election.come(join)
                    self._hear_of(join.term)
                    self._poll()
                elif isinstance(join, Recalled):
                    self._election.learn(join.form)
                    self._poll()
        except (msgspec.DecodeError, ConnectionError):
            pass
        finally:
            if self._lines.get(node) is outbox:
                del self._lines[node]
                self._election.go(node)
            await outbox.close()
        return socket

    def _poll(self) -> None:
        coordinator = self.copy.coordinator
        if self._elected.done():
            return
        ended = coordinator is not None and coordinator.phase in (Phase.ENDING, Phase.ENDED)
        quorums, formed = (coordinator.quorums, coordinator.formed) if coordinator is not None else ([], 0)
        match self._election.poll(_OVER if ended else quorums, formed):
            case Ask(term, nodes):
                self._hear_of(term)
                for node in nodes:
                    self._lines[node].put(Elect(term))
            case Elected() as elected:
                announce(f"the controller is lost: {self.record.hostname} takes over (term {elected.term})")
                self._elected.set_result(elected)
            case Stale(known, formed, node) as stale if stale != self._told:
                self._told = stale
                announce(f"this copy of the journal ends at generation {known}: {node} is asked for {formed}")
                self._lines[node].put(Recall())
