"""The process of a node that writes its part of a durable checkpoint: started, watched, killed when nobody wants it.

It is forked from the node's zygote, where torch is imported already, and ends with it. Its own low priority, its time
limit and what its exit code means are `ftrain.durable.writer`'s; the last line of its log says what went wrong.
"""

from __future__ import annotations

import logging
from pathlib import Path

from ftrain_launcher.errors import SpawnFailed, WorkersWillNotDie, ZygoteFailed
from ftrain_launcher.from_agent import DurableEnded
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node.told import Tell
from ftrain_launcher.processes.output import last_lines
from ftrain_launcher.processes.spawning import Exited, Spawn
from ftrain_launcher.processes.workers import WorkerHost
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.words import SnapshotId

_WORD = "durable"
_logger = logging.getLogger(__name__)


class DurableWriters:
    """One node's writers, of which one at most runs."""

    def __init__(self, job: JobRecord, node: str, host: WorkerHost, tell: Tell) -> None:
        self._job, self._node, self._host, self._tell = job, node, host, tell
        self._folder = Path(job.arena_folder) / node
        self._log = Path(job.config.work.log_folder) / f"durable-{node}.log"
        self._told = ""
        """The one whose end the controller was told."""

    async def write(self, form: Form, snapshot: SnapshotId) -> None:
        """Begin this node's part, unless that is under way or over."""
        id = _id(form.generation, snapshot)
        if id in self._host.running or id == self._told:
            return
        try:
            await self._host.kill_all_now([i for i in self._host.running if _is_writer(i)])  # nobody waits for it
            await self._host.spawn(self._spawn(form, snapshot))
        except (SpawnFailed, ZygoteFailed, WorkersWillNotDie) as error:
            self._end(form, snapshot, str(error))

    def _spawn(self, form: Form, snapshot: SnapshotId) -> Spawn:
        work, durable = form.work, form.work.durable
        assert durable is not None
        arguments = {
            "node-dir": self._folder,
            "url": durable.url,
            "snapshot": f"{snapshot.version}:{snapshot.generation}:{snapshot.slot}",
            "position": form.position,
            "positions": len(form.peers),
            "lanes": work.nproc_per_node,
            # Parts of one snapshot that two generations wrote are not mixed.
            "job": f"{work.job}-{self._job.salt}-g{form.generation}",
            "keep": durable.keep,
            "timeout-seconds": durable.write_timeout_seconds,
        }
        return Spawn(
            id=_id(form.generation, snapshot),
            argv=("ftrain.durable.writer", *(f"--{name}={value}" for name, value in arguments.items())),
            kind="module",
            env=work.environment,
            cwd="/",
            stdout_path=str(self._log),
            stderr_path=str(self._log),
            start=work.start,
        )

    def exited(self, form: Form | None, exited: Exited) -> bool:
        """A process of this node has ended; whether it was a writer. Those of other generations were ended by us."""
        if not _is_writer(exited.id):
            return False
        generation, _, *numbers = exited.id.split("-")
        if form is not None and generation == f"g{form.generation}":
            self._end(form, SnapshotId(*map(int, numbers)), self._failure(exited))
        return True

    def _failure(self, exited: Exited) -> str:
        if exited.signal is not None:
            return f"its writer was killed by signal {exited.signal}"
        if exited.code == 0:
            return ""
        last = last_lines(self._log, 1)
        return last[0] if last else f"its writer exited with code {exited.code}"

    def _end(self, form: Form, snapshot: SnapshotId, failure: str) -> None:
        self._told = _id(form.generation, snapshot)
        self._tell(DurableEnded(self._node, form.generation, form.position, snapshot, failure), ("durable",))

    async def stop(self, form: Form, snapshot: SnapshotId) -> None:
        """Nobody waits for this one any more: kill it, if it runs."""
        try:
            await self._host.kill(_id(form.generation, snapshot))
        except WorkersWillNotDie as error:
            _logger.error("event=writer_will_not_die node=%s reason=%r", self._node, str(error))


def _is_writer(id: str) -> bool:
    return id.split("-")[1] == _WORD


def _id(generation: int, snapshot: SnapshotId) -> str:
    return f"g{generation}-{_WORD}-{snapshot.version}-{snapshot.generation}-{snapshot.slot}"
