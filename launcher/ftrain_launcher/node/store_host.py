"""A generation's store, on the node that hosts it: a process that says its port itself.

Each generation has a fresh one. After a fault all would wait until it has started: so the next generation's is started
ahead, while this one trains.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from ftrain_launcher.errors import SpawnFailed, ZygoteFailed
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.processes.spawning import Exited, Spawn
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.to_agent import STORE_SECONDS_MAX

_RESOLVER = {"RES_OPTIONS": "timeout:1 attempts:1"}
"""torch asks for the name of each of its sockets, for a log: ten seconds where the name server is lost, too."""
_STORE = "-store"
"""In the ids of all of them."""
RETIRED_SECONDS = 1.0
"""A store outlives its generation by so long: to free its memory takes as much processor time as a rank's first step,
and whoever forms the next generation has better use for that. Nobody needs it any more: workers that stay have shut
down their connections to it themselves."""
_logger = logging.getLogger(__name__)


class StoreHost:
    """One node's; hosts one store at a time, and has at most one more ready."""

    def __init__(self, job: JobRecord, node: str, node_folder: Path, host: WorkerHost) -> None:
        self.id = ""
        """Its process's name at the zygote; empty: there is none. An agent that re-adopts a store sets it."""
        self.ahead = ""
        """That of the one for the next generation."""
        self._job = job
        self._node = node
        self._node_folder = node_folder
        self._host = host
        self._retired: set[str] = set()
        """Those of generations that are over, which are not gone yet."""
        self._starting: dict[str, asyncio.Task[int | None]] = {}
        self._ports: dict[int, asyncio.Future[int]] = {}
        """By pid: a store may say its port before the zygote has told of it."""

    def clear_away(self) -> None:
        """What an agent before this one had ready, or retired: nobody that lives was told of it, or needs it."""
        left = [id for id in self._host.running if _STORE in id and id != self.id]
        self._host.send_signal(left, signal.SIGKILL)

    def retire(self) -> None:
        """Its generation is over. Nobody waits until it is gone: if the next one needs its port, it tries again."""
        if self.id in self._host.running:
            self._retired.add(self.id)
            if self._job.config.work.store_port:
                self._end(self.id)
            else:
                asyncio.get_running_loop().call_later(RETIRED_SECONDS, self._end, self.id)
        self.id = ""

    def _end(self, id: str) -> None:
        self._host.send_signal([id], signal.SIGKILL)

    def spared(self, *, hosts: bool) -> set[str]:
        """What need not be killed at a generation's end; ``hosts``: the next one's store is to be here."""
        return self._retired | ({self.ahead} if hosts and self.ahead else set())

    def hear_port(self, pid: int, port: int) -> None:
        """A store listens."""
        said = self._port_of(pid)
        if not said.done():
            said.set_result(port)

    def exited(self, exited: Exited) -> None:
        """A process of this node has ended."""
        self._ports.pop(exited.pid, None)
        self._retired.discard(exited.id)
        if exited.id == self.ahead:
            self.ahead = ""

    async def port(self, generation: int) -> int | None:
        """The port of this generation's store, which is started if it is not there; None: it does not start."""
        if not self.id:
            self.id, self.ahead = self.ahead or f"g{generation}{_STORE}", ""
        try:
            async with asyncio.timeout(STORE_SECONDS_MAX):
                pid = self._host.running.get(self.id) or await self._started(self.id, generation)
                return None if pid is None else await asyncio.shield(self._port_of(pid))
        except TimeoutError:
            return None

    async def prepare(self, generation: int) -> None:
        """Start the next one ahead: ``generation`` trains, with this node's store."""
        is_port_free = not self._job.config.work.store_port  # else it is in use until then
        if self.id and not self.ahead and is_port_free:
            number = 0
            while (id := f"g{generation}{_STORE}-ahead{number}") in self._host.running:
                number += 1
            self.ahead = id
            if await self._started(id, generation + 1) is None and self.ahead == id:
                self.ahead = ""

    def _port_of(self, pid: int) -> asyncio.Future[int]:
        if pid not in self._ports:
            self._ports[pid] = asyncio.get_running_loop().create_future()
        return self._ports[pid]

    async def _started(self, id: str, generation: int) -> int | None:
        """A fault may come while the one that is wanted then is being forked."""
        if id not in self._starting:
            self._starting[id] = asyncio.create_task(self._start(id, generation))
        try:
            return await asyncio.shield(self._starting[id])
        finally:
            self._starting.pop(id, None)

    async def _start(self, id: str, generation: int) -> int | None:
        try:
            return await self._host.spawn(self._spawn(id, generation))
        except (SpawnFailed, ZygoteFailed) as error:
            _logger.error("event=store_not_started node=%s reason=%r", self._node, str(error))
            return None

    def _spawn(self, id: str, generation: int) -> Spawn:
        log = str(Path(self._job.config.work.log_folder) / f"store-{self._node}.log")
        return Spawn(
            id=id,
            argv=("ftrain.store",),
            kind="module",
            env={
                "FTRAIN_NODE_DIR": str(self._node_folder),
                "FTRAIN_GENERATION": str(generation),
                "FTRAIN_STORE_PORT": str(self._job.config.work.store_port),
                **_RESOLVER,
            },
            cwd="/",
            stdout_path=log,
            stderr_path=log,
            start=self._job.config.work.start,
        )
