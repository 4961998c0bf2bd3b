"""The process of a node's snapshot daemon, for its agent: start it, adopt it, call it, end it.

The daemon outlives the agent, so it runs in a session of its own, and a new agent adopts it by its socket. Its
calls block, so they run in a thread, one at a time. One that a signal has stopped (SIGSTOP), or that does not answer
for so long that it must hang, is killed: what it keeps lies in shared memory, where the next one finds it, while
nothing is protected by a daemon that hangs, and its node would be given up at the next fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ftrain_launcher.jobs import JobRecord, TlsFiles
from ftrain_launcher.processes import nursery
from ftrain_launcher.processes.linux import is_stopped, send_signal
from ftrain_launcher.processes.pidfds import PidHandle
from ftrain_launcher.rings.starvation import waited_seconds
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import DaemonLost, SnapshotError

_CALL_TIMEOUT_SECONDS = 10.0
_DEATH_SEEN_SECONDS = 2.0
"""At most: a cut line is noticed before the death behind it, if there is one."""
LOOK_SECONDS = 1.0
"""Between looks at a daemon that has not answered yet; most calls take milliseconds."""
HUNG_SECONDS = 8.0
"""Without an answer, those not counted in which it waited for a processor: it is killed, before the call is over."""
T = TypeVar("T")
_logger = logging.getLogger(__name__)


class DaemonFailed(Exception):
    """The daemon does not start or does not answer."""


class DaemonKeeper:
    """One node's daemon; ``on_death`` is called in the event loop whenever it ends unasked."""

    def __init__(
        self, job: JobRecord, node: str, node_folder: Path, secret: Path, on_death: Callable[[], None]
    ) -> None:
        self.pid: int | None = None
        self.port = 0
        self.killed_since = ""
        """Why the one before had to be killed; empty: it was not, or another one is up."""
        self._job, self._node, self._folder, self._secret = job, node, node_folder, secret
        self._log = Path(job.config.work.log_folder) / f"daemon-{node}.log"
        self._on_death = on_death
        self._client: DaemonClient | None = None
        self._lock = asyncio.Lock()
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._descriptor: int | None = None

    async def adopt(self, pid: int, port: int) -> bool:
        """Take over a daemon that runs already; False if it is gone."""
        client = self._client = DaemonClient(self._folder, role="agent", timeout_seconds=_CALL_TIMEOUT_SECONDS)
        try:
            await self._answer(client.status, pid)
        except (SnapshotError, TimeoutError):
            return False
        self.pid, self.port = pid, port
        self._is_up(pid)
        return True

    async def start(self) -> None:
        """Start the daemon, on the port of the one before if there was one.

        Raises:
            DaemonFailed: it does not get ready.
        """
        for port in dict.fromkeys((self.port, 0)):
            if await asyncio.to_thread(self._start, port):
                assert self.pid is not None
                self._is_up(self.pid)
                return
        raise DaemonFailed(f"the snapshot daemon of {self._node} does not start")

    def _start(self, port: int) -> bool:
        arguments = (
            *("--node", self._node),
            *("--node-dir", str(self._folder)),
            *("--host", self._job.host),
            *("--port", str(port)),
            *("--secret-file", str(self._secret)),
            *("--grace-seconds", str(self._job.owner_grace_seconds)),
            *_arguments(self._job.tls),
        )
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as said:
            with os.fdopen(writer, "wb") as saying, self._log.open("ab") as log:
                descriptors = (saying.fileno(), log.fileno())
                pid = nursery.start(self._folder.parent, "ftrain_snapshot.daemon", arguments, descriptors)
            words = said.readline().split()
        if len(words) != 2 or words[0] != b"ready":
            send_signal(pid, signal.SIGKILL)
            _bury(pid)
            return False
        self.pid, self.port = pid, int(words[1])
        if self._client is not None:
            self._client.close()
        self._client = DaemonClient(self._folder, role="agent", timeout_seconds=_CALL_TIMEOUT_SECONDS)
        return True

    def _is_up(self, pid: int) -> None:
        self.killed_since = ""
        self._down.clear()
        self._up.set()
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._died)
            return
        asyncio.get_running_loop().add_reader(self._descriptor, self._died)

    def _died(self) -> None:
        self._unwatch()
        self._up.clear()
        self._down.set()
        if self.pid is not None:
            _bury(self.pid)
        self.pid = None
        self._on_death()

    def _unwatch(self) -> None:
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    async def call(self, question: Callable[[DaemonClient], T]) -> T:
        """Ask the daemon something; if it dies just now, ask the one that is started in its place.

        Raises:
            DaemonFailed: it does not answer, or refuses.
        """
        last: Exception | None = None
        for _ in range(2):
            client = self._client
            try:
                await asyncio.wait_for(self._up.wait(), _CALL_TIMEOUT_SECONDS)
                async with self._lock:
                    client = self._client
                    assert client is not None
                    return await self._answer(partial(question, client), self.pid)
            except DaemonLost as error:
                last = error
                if client is self._client:  # no other daemon has taken its place yet
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._down.wait(), _DEATH_SEEN_SECONDS)
            except (SnapshotError, TimeoutError) as error:
                raise DaemonFailed(f"the snapshot daemon of {self._node}: {error}") from error
        raise DaemonFailed(f"the snapshot daemon of {self._node} does not answer: {last}") from last

    async def _answer(self, question: Callable[[], T], pid: int | None, *, hung_seconds: float = HUNG_SECONDS) -> T:
        """What the daemon says. If it is stuck, it is killed: then the line is cut, and this raises DaemonLost."""
        looking = asyncio.create_task(self._kill_if_stuck(pid, hung_seconds)) if pid is not None else None
        try:
            return await asyncio.to_thread(question)
        finally:
            if looking is not None:
                looking.cancel()

    async def _kill_if_stuck(self, pid: int, hung_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        asked_at, starved, reason = loop.time(), _starved_seconds(pid), ""
        while not reason:
            await asyncio.sleep(LOOK_SECONDS)  # a process that hangs tells nobody
            if is_stopped(pid):
                reason = "a signal had stopped it"
            elif loop.time() - asked_at - (_starved_seconds(pid) - starved) >= hung_seconds:
                reason = f"it had not answered for {hung_seconds:g} s"
        _logger.warning("event=daemon_killed pid=%d reason=%r", pid, reason)
        self.killed_since = reason
        send_signal(pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end and to give its memory back; kill it if it does not."""
        self._unwatch()
        if self._client is not None:
            with contextlib.suppress(SnapshotError, TimeoutError):
                await self._answer(self._client.shutdown, self.pid, hung_seconds=math.inf)  # it gives back much
        if self.pid is not None:
            await self._await_end(self.pid, grace_seconds)
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _await_end(self, pid: int, grace_seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            daemon = PidHandle(pid)
            try:
                if not await daemon.wait_ended(grace_seconds):
                    daemon.send_signal(signal.SIGKILL)
                    await daemon.wait_ended(grace_seconds)
            finally:
                daemon.close()
        _bury(pid)


def _starved_seconds(pid: int) -> float:
    try:
        return waited_seconds(Path(f"/proc/{pid}/schedstat").read_bytes())
    except OSError:
        return 0.0


def _bury(pid: int) -> None:
    """If it is this process's child: one from the nursery, or of an agent before this one, is the launcher's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _arguments(tls: TlsFiles | None) -> tuple[str, ...]:
    return () if tls is None else ("--tls-cert", tls.certificate, "--tls-key", tls.key, "--tls-ca", tls.authority)
