"""The agent: one process a node, between the controller and the node's workers and daemon.

It keeps one WebSocket to the controller, does what comes over it in order, and says how things are. While the
controller is away the workers go on; if it stays away for longer than its grace time, the job is gone, or this node
is cut off and another has its ranks: the agent ends its node. Runs as
``python -m ftrain_launcher.node.agent --job-folder DIR --node NAME``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import time
from pathlib import Path

import aiohttp
import msgspec

from ftrain_launcher import leadership, names
from ftrain_launcher.errors import SecretRefused
from ftrain_launcher.from_agent import FromAgent, Recalled
from ftrain_launcher.jobs import Endpoint, JobFolder
from ftrain_launcher.line import LINE_ERRORS, OPENING_SECONDS_MAX, Socket, open_line
from ftrain_launcher.node.node import NodeRunner
from ftrain_launcher.packing import decode
from ftrain_launcher.processes.pidfds import wait_gone
from ftrain_launcher.questions import Question
from ftrain_launcher.search import PATIENCE_SHARE, Search
from ftrain_launcher.to_agent import (
    Elect,
    Form,
    GoOn,
    HaltAfter,
    Hold,
    Inject,
    PinDurable,
    Recall,
    Shutdown,
    Stand,
    Stop,
    ToAgent,
    Unpin,
    WriteDurable,
)

HEARTBEAT_SECONDS = 0.5
_INVENTORY_EVERY = 2
"""Heartbeats between two that carry the inventory."""
_RECONNECT_SECONDS = 0.05
_OUTBOX_MESSAGES_MAX = 1000
_VOTE_SECONDS = 10.0
"""How long to wait at a candidate that stands by; an earlier one may be there again by then."""

_encode = msgspec.msgpack.Encoder().encode


class Agent:
    """Connects one `NodeRunner` to the controller."""

    def __init__(self, folder: JobFolder, node: str, failure_domain: str = "", errors_fd: int = 2) -> None:
        self._folder = folder
        self._ended = asyncio.Event()
        self._runner = NodeRunner(folder, node, failure_domain, self._tell, self._ended.set, errors_fd)
        self._outbox: asyncio.Queue[FromAgent] | None = None
        self._wishes: asyncio.Queue[ToAgent] = asyncio.Queue(maxsize=100)
        self._grace_seconds, self._signal = 0.0, int(signal.SIGTERM)

    async def run(self) -> None:
        """Serve until told to end, or until the controller has been away for too long."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        await self._runner.start()
        connected = self._keep_found() if self._runner.job.config.candidates else self._keep_connected()
        work = (connected, self._fulfil(), self._beat(), self._watch_launcher())
        tasks = [asyncio.create_task(w) for w in work]
        ended = asyncio.create_task(self._ended.wait())
        try:
            done, _ = await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()
        finally:
            await self._runner.close(self._grace_seconds, self._signal)
            for task in [ended, *tasks]:
                task.cancel()
            await asyncio.gather(ended, *tasks, return_exceptions=True)

    def _tell(self, message: FromAgent) -> None:
        """Queue a message; while nobody is connected, what matters is repeated at the next join."""
        if self._outbox is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._outbox.put_nowait(message)

    async def _beat(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            count += 1
            if self._outbox is not None:
                self._tell(await self._runner.heartbeat(with_inventory=count % _INVENTORY_EVERY == 0))

    async def _fulfil(self) -> None:
        """Do what the controller wants, one thing after the other."""
        while True:
            match await self._wishes.get():
                case Stop() as message:
                    await self._runner.stop(message)
                case Form() as message:
                    await self._runner.form(message)
                case Hold() | HaltAfter() | GoOn() as message:
                    await self._runner.halt(message)
                case WriteDurable() as message:
                    await self._runner.write_durable(message)
                case PinDurable() as message:
                    await self._runner.pin_durable(message)
                case Unpin() as message:
                    await self._runner.unpin(message)
                case Shutdown(_, grace_seconds, number):
                    self._grace_seconds, self._signal = grace_seconds, number
                    self._ended.set()
                case Inject() | Stand() | Elect() | Recall():
                    pass

    # ---- the line

    async def _keep_connected(self) -> None:
        """Reconnect for as long as the grace time allows; return when it is over."""
        job = self._runner.job
        silence_seconds = job.config.heartbeat_timeout_seconds / 2
        key = self._folder.line_key()
        seen = time.monotonic()
        while time.monotonic() - seen < job.controller_grace_seconds:
            endpoint = self._folder.endpoint()
            if endpoint is not None:
                with contextlib.suppress(*LINE_ERRORS, SecretRefused):
                    async with open_line(endpoint, "/agent", lambda _: key, silence_seconds) as socket:
                        try:
                            await self._talk(socket)
                        finally:
                            seen = time.monotonic()
            await asyncio.sleep(_RECONNECT_SECONDS)
        logging.getLogger(__name__).warning("event=controller_gone node=%s", self._runner.node)

    async def _keep_found(self) -> None:
        """Several hosts may run the controller: stay with the newest; without one, workers end, and the node waits."""
        job = self._runner.job
        known, patience = self._folder.endpoint(), PATIENCE_SHARE * job.controller_grace_seconds
        assert known is not None
        candidates = leadership.endpoints(job.config.candidates)
        names.prepare(candidate.host for candidate in candidates)
        search = Search(candidates, known, patience)
        lost, paused = time.monotonic(), False
        while (away := time.monotonic() - lost) < job.controller_grace_seconds + job.config.host_wait_seconds:
            if away > job.controller_grace_seconds and not paused:
                logging.getLogger(__name__).warning("event=cut_off node=%s", self._runner.node)
                await self._runner.pause()
                paused = True
            if await self._turn_to(search, search.order(away)):
                lost, paused = time.monotonic(), False
            await asyncio.sleep(_RECONNECT_SECONDS)
        logging.getLogger(__name__).warning("event=controller_gone node=%s", self._runner.node)

    async def _turn_to(self, search: Search, candidates: list[Endpoint]) -> bool:
        """Talk to the first of them that answers, until the line closes; whether it was the controller."""
        silence_seconds = self._runner.job.config.heartbeat_timeout_seconds / 2
        key = self._folder.line_key()
        for candidate in candidates:
            with contextlib.suppress(*LINE_ERRORS, SecretRefused, msgspec.DecodeError):
                async with open_line(candidate, "/agent", lambda _: key, silence_seconds) as socket:
                    stand = await _hear(socket, OPENING_SECONDS_MAX)
                    if not isinstance(stand, Stand):
                        continue
                    if not stand.leads or stand.term < self._runner.standing.term:
                        await self._vote(socket, search, candidate, stand)
                        return False
                    self._obey_from(stand.term)
                    search.found(candidate)
                    with contextlib.suppress(*LINE_ERRORS):
                        await self._talk(socket)
                    return True
        return False

    async def _vote(self, socket: Socket, search: Search, candidate: Endpoint, stand: Stand) -> None:
        """Be counted at a candidate that stands by, and promise what it asks; it hangs up when it leads."""
        if search.hear_of(stand.leader):
            return
        deadline = time.monotonic() + _VOTE_SECONDS
        await socket.send_bytes(_encode(self._runner.join()))
        while (left := deadline - time.monotonic()) > 0:
            match await _hear(socket, left):
                case Elect(term) if term > self._runner.standing.term:
                    self._obey_from(term)
                    search.found(candidate)
                    await socket.send_bytes(_encode(self._runner.join()))
                case Recall() if self._runner.standing.accepted is not None:
                    await socket.send_bytes(_encode(Recalled(self._runner.node, self._runner.standing.accepted)))
                case Stand(_, _, leader):
                    search.hear_of(leader)
                    return
                case None:
                    return

    def _obey_from(self, term: int) -> None:
        """What an older controller wanted, and was not begun yet, is not done any more."""
        if term > self._runner.standing.term:
            while not self._wishes.empty():
                self._wishes.get_nowait()
            self._runner.promise(term)

    async def _watch_launcher(self) -> None:
        """A host's node ends with its launcher. For emulated nodes the controller sees to that, orderly."""
        if not self._runner.job.config.hosts:
            await asyncio.get_running_loop().create_future()
        await wait_gone(self._runner.job.launcher_pid)
        logging.getLogger(__name__).warning("event=launcher_gone node=%s", self._runner.node)

    async def _talk(self, socket: Socket) -> None:
        outbox: asyncio.Queue[FromAgent] = asyncio.Queue(maxsize=_OUTBOX_MESSAGES_MAX)
        for message in [self._runner.join(), *self._runner.said()]:
            outbox.put_nowait(message)
        self._outbox = outbox
        writer = asyncio.create_task(self._write(socket, outbox))
        try:
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.BINARY:
                    continue
                wish = decode(frame.data)
                if isinstance(wish, Inject):
                    self._runner.inject(wish)
                elif isinstance(wish, Question):
                    self._runner.answering.take(wish)
                else:
                    await self._wishes.put(wish)
        finally:
            self._outbox = None
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, socket: Socket, outbox: asyncio.Queue[FromAgent]) -> None:
        while True:
            await socket.send_bytes(_encode(await outbox.get()))


async def _hear(socket: Socket, timeout_seconds: float) -> ToAgent | None:
    """The next message; None: the line was closed. Raises TimeoutError."""
    frame = await socket.receive(timeout=timeout_seconds)
    return decode(frame.data) if frame.type is aiohttp.WSMsgType.BINARY else None


def main() -> int:
    """Run one node's agent."""
    parser = argparse.ArgumentParser(description="ftrain's agent; started by an engine")
    parser.add_argument("--job-folder", type=Path, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--failure-domain", default="")
    parser.add_argument("--errors-fd", type=int, default=2, help="the terminal's stderr; ours goes to a log")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="ftrain %(levelname)s %(message)s")
    asyncio.run(_run(JobFolder(arguments.job_folder), arguments.node, arguments.failure_domain, arguments.errors_fd))
    return 0


async def _run(folder: JobFolder, node: str, failure_domain: str, errors_fd: int) -> None:
    await Agent(folder, node, failure_domain, errors_fd).run()


if __name__ == "__main__":
    sys.exit(main())
