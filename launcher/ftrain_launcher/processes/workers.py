"""The agent's hold on its workers: start, watch, stop; no orphan is ever left.

A ``WorkerHost`` owns one line to the node's zygote, which is the parent of all workers. It finds a zygote that
already runs (the agent was restarted: workers are re-adopted), has one forked from a root zygote (emulated
nodes share one import), or starts one. Exits are pushed to ``on_exit``, each once. If the zygote is lost, the
kernel kills its workers; the host makes sure of it, reports their exits, and starts anew at the next ``spawn``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ftrain_launcher.errors import SpawnFailed, WorkersWillNotDie, ZygoteFailed
from ftrain_launcher.processes import spawning
from ftrain_launcher.processes.linux import is_stopped
from ftrain_launcher.processes.pidfds import PidHandle
from ftrain_launcher.processes.spawning import Acknowledge, Children, Exited, Kill, Ready, Spawn, Spawned
from ftrain_launcher.processes.zygote_line import ZygoteLine, exec_zygote, fork_zygote
from ftrain_launcher.processes.zygote_start import ZygoteConfig
from ftrain_snapshot.errors import ProtocolError

REQUEST_TIMEOUT_SECONDS = 10.0
FORK_TIMEOUT_SECONDS = 30.0
"""While a job begins the zygote still imports, and forks between two imports: half a second of an idle processor."""
KILL_TIMEOUT_SECONDS = 10.0
STOPPED_TIMEOUT_SECONDS = 0.2
"""For a zygote that somebody stopped: it will not do what it is told."""
STOPPED_LOOK_SECONDS = 0.5
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Worker:
    pid: int
    handle: PidHandle | None
    """None: it was gone before we could take hold of it; its exit is on the way."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class WorkerHost:
    """All workers of one node. Used from one event loop.

    ``on_exit`` is called in the loop, once for each process that ends, also for those that ended while no agent
    was there, and before a call that waits for that end returns. SIGKILL may mean that the zygote was lost.
    """

    def __init__(self, config: ZygoteConfig, on_exit: Callable[[Exited], None]) -> None:
        self.config = config
        self._on_exit = on_exit
        self._workers: dict[str, _Worker] = {}
        self._line: ZygoteLine | None = None
        self._zygote: PidHandle | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._adopting = False
        self._spawning: dict[str, asyncio.Future[int]] = {}
        self._listing: list[asyncio.Future[Children]] = []

    @property
    def ready(self) -> Ready | None:
        """What the zygote said of itself (its pid, the seconds of its imports); None: no zygote."""
        return self._line.ready if self._line else None

    @property
    def running(self) -> dict[str, int]:
        """Pid by id of the processes that have not ended."""
        return {id: worker.pid for id, worker in self._workers.items()}

    # ---- the zygote

    async def start(self) -> Ready:
        """Connect to this node's zygote, getting one first if there is none; workers found there are adopted.

        Raises:
            ZygoteFailed: there is one that does not answer, or a new one did not start.
        """
        async with self._starting:
            if self._line is not None:
                return self._line.ready
            await self._end_reader()
            line = await self._find_or_make()
            self._line = line
            with contextlib.suppress(ProcessLookupError):
                self._zygote = PidHandle(line.ready.pid)
            self._reader = asyncio.create_task(self._read(line), name="zygote events")
            self._adopting = True
            await self.list()
            return line.ready

    async def _find_or_make(self) -> ZygoteLine:
        config = self.config
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return await ZygoteLine.connect(config.socket_path, REQUEST_TIMEOUT_SECONDS)
        if config.root_socket is not None:
            try:
                return await fork_zygote(config, config.root_socket, FORK_TIMEOUT_SECONDS)
            except ZygoteFailed as error:
                _logger.warning("event=zygote_fork_failed instead=exec reason=%r", str(error))
        return await exec_zygote(config)

    async def _read(self, line: ZygoteLine) -> None:
        try:
            while True:
                self._take(await line.receive())
        except (EOFError, ConnectionError, ProtocolError, msgspec.DecodeError) as error:
            self._line = None
            await line.close()
            await self._lose_zygote(error)

    def _take(self, event: spawning.Event) -> None:
        match event:
            case Spawned(id, pid, error):
                answer = self._spawning.pop(id, None)
                if not error:
                    self._adopt(id, pid)
                if answer is not None and not answer.done():
                    if error:
                        answer.set_exception(SpawnFailed(id, error))
                    else:
                        answer.set_result(pid)
            case Exited():
                self._bury(event)
            case Children(running, exited):
                for id, pid in running:
                    self._adopt(id, pid)
                # Later lists may repeat an exit whose acknowledgement was still on its way.
                for exit in exited:
                    if self._adopting or exit.id in self._workers:
                        self._bury(exit)
                self._adopting = False
                for listing in self._listing:
                    if not listing.done():
                        listing.set_result(event)
                self._listing.clear()

    def _adopt(self, id: str, pid: int) -> None:
        if id not in self._workers:
            handle = None
            with contextlib.suppress(ProcessLookupError):
                handle = PidHandle(pid)
            self._workers[id] = _Worker(pid, handle)

    def _bury(self, exited: Exited) -> None:
        worker = self._workers.pop(exited.id, None)
        if worker is not None and worker.handle is not None:
            worker.handle.close()
        if self._line is not None:
            self._line.send(Acknowledge(exited.id))
        # Not told from here: what the callback raises is not the reader's to handle, and must not end it.
        asyncio.get_running_loop().call_soon(self._tell, exited, worker)

    def _tell(self, exited: Exited, worker: _Worker | None) -> None:
        try:
            self._on_exit(exited)
        finally:
            if worker is not None:
                worker.gone.set()

    async def _lose_zygote(self, error: BaseException) -> None:
        """The line has ended: nobody reaps or watches these workers any more, so they must not go on."""
        if self._workers:
            _logger.warning("event=zygote_lost workers=%d reason=%r", len(self._workers), error)
        gone = ZygoteFailed(f"the zygote at {self.config.socket_path} is gone")
        waiting: list[asyncio.Future[Any]] = [*self._spawning.values(), *self._listing]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(gone)
        self._spawning.clear()
        self._listing.clear()
        await self._bury_zygote()
        for worker in self._workers.values():
            # The kernel kills the workers but not their children, which are of the worker's group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_TIMEOUT_SECONDS
        for id, worker in list(self._workers.items()):
            if worker.handle is not None and not await worker.handle.wait_ended(deadline - time.monotonic()):
                _logger.error("event=worker_will_not_die id=%s pid=%d", id, worker.pid)
            self._bury(Exited(id, worker.pid, None, int(signal.SIGKILL), with_zygote=True))

    async def _bury_zygote(self) -> None:
        zygote, self._zygote = self._zygote, None
        if zygote is None:
            return
        zygote.send_signal(signal.SIGKILL)
        await zygote.wait_ended(1.0)
        with contextlib.suppress(ChildProcessError):  # it is this process's child only if this process made it
            os.waitpid(zygote.pid, os.WNOHANG)
        zygote.close()

    # ---- the workers

    async def spawn(self, spawn: Spawn) -> int:
        """Start a process; returns its pid.

        Raises:
            SpawnFailed: it cannot be started as asked.
            ZygoteFailed: the zygote does not answer, or was lost and could not be started again.
        """
        await self.start()
        assert self._line is not None
        answer = self._spawning[spawn.id] = asyncio.get_running_loop().create_future()
        self._line.send(spawn)
        return await self._answer(answer, FORK_TIMEOUT_SECONDS)

    async def list(self) -> Children:
        """What runs and what has ended, as the zygote knows it. Raises ZygoteFailed."""
        if self._line is None:
            raise ZygoteFailed(f"no zygote at {self.config.socket_path}")
        answer: asyncio.Future[Children] = asyncio.get_running_loop().create_future()
        self._listing.append(answer)
        self._line.send(spawning.List())
        return await self._answer(answer, REQUEST_TIMEOUT_SECONDS)

    async def _answer(self, answer: asyncio.Future[_T], timeout_seconds: float) -> _T:
        """Of a zygote that was stopped none is waited for, and it is killed: the next call gets another one."""
        deadline = time.monotonic() + timeout_seconds
        while not answer.done():
            await asyncio.wait([answer], timeout=min(STOPPED_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
            stopped = not answer.done() and self._zygote is not None and is_stopped(self._zygote.pid)
            if stopped and self._zygote is not None:
                self._zygote.send_signal(signal.SIGKILL)
            if not answer.done() and (stopped or time.monotonic() >= deadline):
                answer.cancel()
                how = "was stopped" if stopped else "does not answer"
                raise ZygoteFailed(f"the zygote at {self.config.socket_path} {how}")
        return answer.result()

    def send_signal(self, ids: Iterable[str], number: int) -> None:
        """Signal processes by id (SIGKILL: with their groups), without waiting."""
        if self._line is not None:
            self._line.send(Kill(tuple(ids), number))

    async def kill(self, id: str) -> None:
        """Kill one process and its group and wait until it is reaped. Raises WorkersWillNotDie."""
        await self.kill_all_now([id])

    async def kill_all_now(self, ids: Iterable[str] | None = None) -> None:
        """Kill these processes (None: all) and their groups and wait until they are reaped.

        Raises:
            WorkersWillNotDie: some are still there after ``KILL_TIMEOUT_SECONDS``.
        """
        workers = self._select(ids)
        self.send_signal(workers, signal.SIGKILL)
        stopped = self._zygote is not None and is_stopped(self._zygote.pid)
        if await self._wait_gone(workers, STOPPED_TIMEOUT_SECONDS if stopped else KILL_TIMEOUT_SECONDS / 2):
            return
        # The zygote hangs: without it the kernel kills its workers, and the lost line buries them.
        if self._zygote is not None:
            self._zygote.send_signal(signal.SIGKILL)
        if not await self._wait_gone(workers, KILL_TIMEOUT_SECONDS / 2):
            left = {id: worker.pid for id, worker in workers.items() if not worker.gone.is_set()}
            raise WorkersWillNotDie(left, KILL_TIMEOUT_SECONDS)

    async def stop_all(
        self, number: int = signal.SIGTERM, grace_seconds: float = 5.0, ids: Iterable[str] | None = None
    ) -> None:
        """Ask these processes (None: all) with ``number``, wait, and kill those that are left.

        Returns when all are reaped. A stopped process does not take the signal; it is killed after the grace.
        Raises WorkersWillNotDie.
        """
        workers = self._select(ids)
        self.send_signal(workers, number)
        if not await self._wait_gone(workers, grace_seconds):
            await self.kill_all_now(id for id, worker in workers.items() if not worker.gone.is_set())

    def _select(self, ids: Iterable[str] | None) -> dict[str, _Worker]:
        chosen = self._workers if ids is None else [id for id in ids if id in self._workers]
        return {id: self._workers[id] for id in chosen}

    async def _wait_gone(self, workers: dict[str, _Worker], timeout_seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                for worker in workers.values():
                    await worker.gone.wait()
        return all(worker.gone.is_set() for worker in workers.values())

    # ---- the end

    async def shutdown(self, grace_seconds: float = 5.0, number: int = signal.SIGTERM) -> None:
        """Stop all workers (ask with ``number``, grace, kill) and end the zygote; returns when all of them are gone."""
        if self._line is not None and self._reader is not None:
            try:
                await self.stop_all(number, grace_seconds)
            finally:
                if self._line is not None:  # else the zygote was stopped, and has been killed on the way
                    self._line.send(spawning.Shutdown(0.0))
                await asyncio.wait({self._reader}, timeout=KILL_TIMEOUT_SECONDS)  # the closed line is the answer
        await self._end_reader()
        await self._bury_zygote()
        await self.close()

    async def close(self) -> None:
        """Hang up and leave zygote and workers to themselves (and to ``owner_grace_seconds``)."""
        await self._end_reader()
        if self._line is not None:
            await self._line.close()
            self._line = None
        for worker in self._workers.values():
            if worker.handle is not None:
                worker.handle.close()
        self._workers.clear()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    async def _end_reader(self) -> None:
        """Wait for a reader whose line has ended, or end it."""
        if self._reader is not None:
            if self._line is not None:
                self._reader.cancel()
            await asyncio.wait({self._reader})
            self._reader = None
