"""The store of the generation that is being formed, on the node that hosts it: a process that says its port itself."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ftrain_launcher.errors import SpawnFailed, ZygoteFailed
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.processes.spawning import Spawn
from ftrain_launcher.processes.workers import WorkerHost

_TIMEOUT_SECONDS = 8.0
_logger = logging.getLogger(__name__)


class StoreHost:
    """One node's; hosts one store at a time."""

    def __init__(self, job: JobRecord, node: str, node_folder: Path, host: WorkerHost) -> None:
        self.id = ""
        """Its process's name at the zygote; empty: there is none. An agent that re-adopts a store sets it."""
        self._job = job
        self._node = node
        self._node_folder = node_folder
        self._host = host
        self._generation = 0
        self._port: asyncio.Future[int] | None = None

    def forget(self) -> None:
        """Its generation is over: it ends with the workers."""
        self.id, self._port = "", None

    def hear_port(self, generation: int, port: int) -> None:
        """The store of a generation listens."""
        if self._port is not None and generation == self._generation and not self._port.done():
            self._port.set_result(port)

    async def port(self, generation: int) -> int | None:
        """The port of this generation's store, which is started if it is not there; None: it does not start."""
        port = self._port
        if port is None:
            port = self._port = asyncio.get_running_loop().create_future()
            self._generation, self.id = generation, f"g{generation}-store"
            try:
                await self._host.spawn(self._spawn())
            except (SpawnFailed, ZygoteFailed) as error:
                _logger.error("event=store_not_started node=%s reason=%r", self._node, str(error))
                return None
        try:
            return await asyncio.wait_for(asyncio.shield(port), _TIMEOUT_SECONDS)
        except TimeoutError:
            return None

    def _spawn(self) -> Spawn:
        log = str(Path(self._job.config.work.log_folder) / f"store-{self._node}.log")
        return Spawn(
            id=self.id,
            argv=("ftrain.store",),
            kind="module",
            env={"FTRAIN_NODE_DIR": str(self._node_folder), "FTRAIN_GENERATION": str(self._generation)},
            cwd="/",
            stdout_path=log,
            stderr_path=log,
            start=self._job.config.work.start,
        )
