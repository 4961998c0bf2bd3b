"""A node's standbys: processes that have run the script up to its training function, and wait for a rank to be lost.

They are started once all of the node's workers train, and have shown that they can rejoin: before that nobody knows
whether the script has such a function, and a process that runs past it would be one rank too many. One that ends
before it waits was started for a script that does not bear it; after two of these none is started any more.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from ftrain_launcher.errors import SpawnFailed, ZygoteFailed
from ftrain_launcher.node.staying import Waiting, WaitingRoom
from ftrain_launcher.processes.spawning import Spawn
from ftrain_launcher.processes.workers import WorkerHost

_WORD = "standby"
_FAILURES_MAX = 2
_logger = logging.getLogger(__name__)


class Standbys:
    """Keeps as many as wanted."""

    def __init__(self, node: str, wanted: int, host: WorkerHost, room: WaitingRoom) -> None:
        self._node, self._wanted, self._host, self._room = node, wanted, host, room
        self._starting: dict[str, tuple[str, ...]] = {}
        """Those that do not wait yet, with their arguments."""
        self._failures = 0

    @property
    def starting(self) -> set[str]:
        """The zygote's names of those that are on their way."""
        return set(self._starting)

    async def provide(self, like: Spawn) -> None:
        """Start those that are missing, for places like this one."""
        while self._failures < _FAILURES_MAX and self._room.standbys + len(self._starting) < self._wanted:
            spawn = self._spawn(like)
            self._starting[spawn.id] = spawn.argv
            try:
                await self._host.spawn(spawn)
            except (SpawnFailed, ZygoteFailed) as error:
                self._starting.pop(spawn.id, None)
                _logger.warning("event=no_standby node=%s reason=%r", self._node, str(error))
                return

    def _spawn(self, like: Spawn) -> Spawn:
        number = 0
        generation = like.id.partition("-")[0]
        while (id := f"{generation}-{_WORD}{number}") in self._host.running or id in self._starting:
            number += 1
        log = str(Path(like.stdout_path).parent / f"{_WORD}-{self._node}.log")
        env = {**like.env, "FTRAIN_STANDBY": "1"}
        return msgspec.structs.replace(like, id=id, env=env, stdout_path=log, stderr_path=log)

    def waits(self, id: str, pid: int) -> None:
        """A process of this node has come to the training function."""
        argv = self._starting.pop(id, None)
        if argv is not None:
            self._failures = 0
            self._room.add(Waiting(id, pid, argv, None))

    def exited(self, id: str) -> None:
        """A process of this node has ended."""
        if self._starting.pop(id, None) is not None:
            self._failures += 1
            _logger.warning("event=standby_ended node=%s id=%s failures=%d", self._node, id, self._failures)
