"""The shell round the coordinator: sockets, clock, journal, HTTP. It decides nothing.

    agent  --- WebSocket /agent  ---> events --> journal --> Coordinator.handle --> commands --> agents, launchers
    launcher - WebSocket /engine ---/
    people --- HTTP /api/...     ---> views of the coordinator and of what the agents last said

It holds no training data, and training goes on while it is away: started again, it replays the journal and
the agents reconnect. Runs as ``python -m ftrain_launcher.control.controller --job-folder DIR``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import itertools
import os
import sys
import time
from pathlib import Path

import msgspec
from aiohttp import web

from ftrain_launcher import handshake, leadership
from ftrain_launcher.background import Background
from ftrain_launcher.control import views
from ftrain_launcher.control.agent_lines import AgentLines
from ftrain_launcher.control.api import Handler, OperatorApi
from ftrain_launcher.control.door import open_door
from ftrain_launcher.control.followers import Followers
from ftrain_launcher.control.journal import Journal, replay
from ftrain_launcher.control.launcher_lines import LauncherLines
from ftrain_launcher.control.launchers import Launchers
from ftrain_launcher.control.standby import Standby
from ftrain_launcher.control.writing import STANDSTILL_SECONDS, Writing
from ftrain_launcher.engine_messages import JobEnded, ReapNode, StartNode, StopJob
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    Announce,
    CheckNodes,
    Command,
    ControllerRestarted,
    EndJob,
    Event,
    JobStarted,
    Send,
    StoodStill,
    Tick,
)
from ftrain_launcher.job.fencing import Elected
from ftrain_launcher.job.policy import EXIT_USAGE
from ftrain_launcher.jobs import Endpoint, JobFolder, Result
from ftrain_launcher.leadership import Leadership, Seen
from ftrain_launcher.processes.pidfds import wait_gone
from ftrain_launcher.terminal import announce
from ftrain_snapshot.limits import allow_many_sockets

_WATCH_SECONDS = 0.5
_STATUS_EVERY = 2
"""Watches between two that write the status file."""
_GOODBYE_SECONDS = 2.0
_EXIT_JOURNAL = 1


class Controller:
    """One job's controller process."""

    def __init__(self, folder: JobFolder, elected: Elected | None = None) -> None:
        """``elected``: it takes over from another candidate (docs/controller.md)."""
        self._elected = elected
        self._gives_way = False
        self.folder = folder
        self.record = folder.record()
        self._launchers = Launchers()
        self._timer: asyncio.TimerHandle | None = None
        self._ran_at = time.monotonic()
        """When this process was last seen to run, as it does twice a second."""
        self._ended = asyncio.Event()
        self._result: Result | None = None
        """How the job has ended."""
        journal = Journal(folder.journal)
        self._resumed = journal.length > 0
        self.coordinator = replay(folder.journal) if self._resumed else Coordinator(self.record.config)
        self._followers = Followers(journal, self._carry_out)
        self._writing = Writing(journal, self._on_disk)
        self._status_writes = Background()
        self._launcher_lines = LauncherLines(
            folder, self.record, self.coordinator, self._launchers, self.submit, self._repeat, self._ended
        )
        self._agents = agents = AgentLines(
            folder, self.record, self.coordinator, self.submit, self._hear_of, self._ended
        )
        self._checks = Background()
        self._api = OperatorApi(self.coordinator, agents.observations, agents.outboxes, agents.requests, self._settle)

    # ---- life

    async def run(self) -> int | None:
        """Serve until the job has ended; return its exit code. None: another candidate leads, or is about to."""
        routes = [
            web.get("/agent", self._agents.serve),
            web.get("/engine", self._launcher_lines.serve),
            web.get("/journal", self._serve_journal),
            web.get("/api/leader", self._guarded(self._tell_leader)),
            *self._api.routes(self._guarded),
        ]
        runner = open_door(routes, shutdown_timeout_seconds=1.0)
        await runner.setup()
        await self._listen(runner)
        writing = asyncio.create_task(self._write_journal())
        for event in self._first_events():
            self.submit(event)
        work = [self._keep_watch(), self._watch_launcher(), self._agents.detection.run()]
        if self.record.candidate is not None:
            leadership.write(self.folder, Leadership(self.coordinator.term, leads=True))
            work += [self._followers.keep_watch(), self._watch_candidates(self.record.candidate)]
        tasks = [asyncio.create_task(w) for w in work]
        try:
            await self._ended.wait()
            await self._say_the_end()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._checks.close()
            await self._agents.close()
            await self._launchers.close()
            await runner.cleanup()
            self._writing.close()
            await writing
        if self._gives_way:
            return None
        return _EXIT_JOURNAL if self._result is None else self._result.exit_code

    async def _write_journal(self) -> None:
        """Without it nothing may be done: started again, the controller knows what it had written."""
        try:
            await self._writing.run()
        except OSError as error:
            announce(f"the journal cannot be written ({error.strerror}): the controller ends, to be started again")
            self._ended.set()

    async def _say_the_end(self) -> None:
        if self._result is not None:
            await asyncio.gather(*self._status_writes.tasks)
            await self._write_status()
            try:
                self.folder.write_result(self._result)
            except OSError as error:
                announce(f"the job's result cannot be written ({error.strerror}): {self._result.message}")
            self._launchers.tell(JobEnded(self._result.exit_code, self._result.message))
        await self._launchers.drain(_GOODBYE_SECONDS)

    def _first_events(self) -> list[Event]:
        events: list[Event] = [] if self._resumed else [JobStarted(self.record.config)]
        if self._elected is not None:
            events.append(ControllerRestarted(self._elected.term, self._elected.stopped, self._elected.recalled))
        elif self._resumed:
            events.append(ControllerRestarted())
        return events

    async def _listen(self, runner: web.AppRunner) -> None:
        """Listen where the last controller did, if that is free, so that everybody finds this one."""
        host, port = self.record.controller_host, self.record.controller_port
        before = self.folder.endpoint() if self.record.candidate is None else None
        try:
            site = web.TCPSite(runner, host, before.port if before else port)
            await site.start()
        except OSError:
            if before is None:
                raise
            site = web.TCPSite(runner, host, port)
            await site.start()
        bound = runner.addresses[0][1]
        self.folder.write_endpoint(Endpoint(host, bound, os.getpid()))

    def _guarded(self, handler: Handler) -> Handler:
        expected = f"Bearer {self.folder.token()}"

        async def check(request: web.Request) -> web.StreamResponse:
            shown = request.headers.get("Authorization", "")
            if not hmac.compare_digest(shown.encode(errors="replace"), expected.encode()):
                raise web.HTTPUnauthorized(text="this job's token is wanted")
            return await handler(request)

        return check

    # ---- events in, commands out

    def submit(self, event: Event) -> None:
        """Take in one event; what the coordinator decides is carried out once the event is in the journal."""
        now = time.time()
        length = self._writing.take(event, now)
        self._followers.hold(length, self.coordinator.handle(event, now), now)
        self._set_timer()

    async def _settle(self, event: Event) -> None:
        """The same, and wait until it is in the journal."""
        self.submit(event)
        await self._followers.wait_known(self._writing.length)

    def _repeat(self, commands: list[Command]) -> None:
        """What may not have been heard; not before what it rests on is in the journal."""
        self._followers.hold(self._writing.length, commands, time.time())

    def _on_disk(self, lines: bytes, seconds: float) -> None:
        """The disk has taken them, after so long: nobody could be told anything meanwhile."""
        self._followers.take(lines, time.time())
        if seconds > STANDSTILL_SECONDS and not self._ended.is_set():
            self.submit(StoodStill(seconds))
        self._set_timer()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Send(node, message):
                self._agents.tell(node, message)
            case StartNode(node):
                self._launchers.start(command, self.coordinator.nodes[node].launcher)
            case ReapNode():
                self._launchers.tell(command)
            case Announce(text):
                announce(text)
            case CheckNodes(names):
                self._checks.keep(self._api.health.report(names, self.submit))
            case EndJob(exit_code, message):
                self._result = Result(exit_code, message)
                self._ended.set()

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        deadline = self.coordinator.next_deadline()
        if deadline is not None and not self._ended.is_set():
            delay = max(0.0, deadline - time.time()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._notice_standstill()
        if self._writing.stands_still_seconds > STANDSTILL_SECONDS:
            return  # `_on_disk` goes on from here.
        deadline = self.coordinator.next_deadline()
        if deadline is not None and time.time() >= deadline:
            self.submit(Tick())
        else:
            self._set_timer()

    async def _keep_watch(self) -> None:
        """Notice silent agents, and keep the status file fresh."""
        for number in itertools.count():
            await asyncio.sleep(_WATCH_SECONDS)
            self._notice_standstill()
            if number % _STATUS_EVERY == 0:
                self._keep_status()
            self._agents.hang_up(time.time() - self.record.config.heartbeat_timeout_seconds)

    def _notice_standstill(self) -> None:
        """Whoever could not be heard meanwhile was not silent."""
        before, self._ran_at = self._ran_at, time.monotonic()
        seconds = self._ran_at - before
        if seconds > STANDSTILL_SECONDS:
            self._agents.excuse(seconds)
            self.submit(StoodStill(seconds))

    def _keep_status(self) -> None:
        """In a thread, as the journal; if the last one is still being written, the next will do."""
        if not self._status_writes.tasks:
            self._status_writes.begin(self._write_status())

    async def _write_status(self) -> None:
        status = msgspec.json.encode(views.status(self.coordinator, self._agents.observations, os.getpid()))
        with contextlib.suppress(OSError):  # It is for those who come while the controller is away.
            await asyncio.to_thread(self.folder.write_status, status)

    async def _watch_launcher(self) -> None:
        """The job ends with its launcher: nobody would see to it any more."""
        await wait_gone(self.record.launcher_pid)
        if self.record.candidate is not None:  # This host is lost to the job, which goes on.
            self._gives_way = True
            self._ended.set()
        if not self._ended.is_set():
            self.submit(StopJob("the launcher is gone", 1))

    # ---- several candidates

    async def _watch_candidates(self, own: int) -> None:
        """Give way to a newer controller, or to the agents that have promised to obey one."""
        while True:
            seen = await leadership.look(self.record.config.candidates, own, self.folder.token())
            self._hear_of(max((s.term for s in seen), default=0))
            await asyncio.sleep(leadership.LOOK_EVERY_SECONDS)

    def _hear_of(self, term: int) -> None:
        if term > self.coordinator.term and not self._ended.is_set():
            announce(f"another candidate is to be the controller (term {term}): this one stands by")
            leadership.write(self.folder, Leadership(term, leads=False))
            self._gives_way = True
            self._ended.set()

    async def _serve_journal(self, request: web.Request) -> web.WebSocketResponse:
        socket, admitted = await handshake.accept(request, self.folder.line_key(), self.record.salt)
        if admitted:
            await self._followers.serve(socket, request.transport)
        return socket

    async def _tell_leader(self, request: web.Request) -> web.Response:
        term, length = self.coordinator.term, self._followers.written
        candidate = self.record.candidate or 0
        seen = Seen(candidate=candidate, term=term, leads=True, journal_term=term, journal_bytes=length)
        return web.Response(body=msgspec.json.encode(seen), content_type="application/json")


def main() -> int:
    """Run one job's controller."""
    parser = argparse.ArgumentParser(description="ftrain's controller; started by 'ftrain run'")
    parser.add_argument("--job-folder", type=Path, required=True)
    arguments = parser.parse_args()
    return serve(JobFolder(arguments.job_folder))


def serve(folder: JobFolder) -> int:
    """Be the controller of this job until it has ended; returns its exit code."""
    allow_many_sockets()

    async def run() -> int:
        elected = None
        while True:
            if elected is not None or folder.record().candidate is None or leadership.read(folder).leads:
                code = await Controller(folder, elected).run()
                if code is not None:
                    return code
            if (elected := await Standby(folder).run()) is None:
                return EXIT_USAGE  # Nobody is there to see to this host any more.

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
