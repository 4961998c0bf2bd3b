"""What an agent writes down about its node, so that its successor can re-adopt and its engine can reap."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import msgspec
import psutil

from ftrain_launcher.jobs import write_atomically
from ftrain_launcher.to_agent import Form

_logger = logging.getLogger(__name__)


class WorkerRecord(msgspec.Struct, frozen=True):
    """One worker that was started."""

    id: str
    rank: int
    local_rank: int
    pid: int
    since: float = 0.0
    """When it was given its place, in unix seconds: what the control page says of earlier moments is another's."""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a node's agent."""

    node: str
    agent_pid: int
    daemon_pid: int | None = None
    daemon_port: int = 0
    zygote_pid: int | None = None
    stopped: int = 0
    """The newest generation for which older ones were stopped."""
    form: Form | None = None
    """The generation that runs here."""
    workers: tuple[WorkerRecord, ...] = ()
    store_id: str = ""
    """The id of the store process that this node hosts; empty: none."""
    term: int = 0
    """The newest controller's that the agent has promised to obey."""
    accepted: Form | None = None
    """The newest generation whose ranks it took, whatever became of them; None too if nobody could ask for it."""

    def pids(self) -> list[int]:
        """All processes of the node."""
        return [
            pid
            for pid in (self.agent_pid, self.daemon_pid, self.zygote_pid, *(w.pid for w in self.workers))
            if pid is not None
        ]


class NodeFile:
    """``node.json`` in a node's folder."""

    def __init__(self, node_folder: Path) -> None:
        self._path = node_folder / "node.json"

    def read(self) -> NodeRecord | None:
        """What the last agent wrote; None if there is nothing."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=NodeRecord)
        except FileNotFoundError:
            return None

    def write(self, record: NodeRecord) -> None:
        """Replace it in one step; where memory is full, in the room that the old one had.

        If there is none even so, nothing is written down: the node goes on, but would not survive its agent's death.
        """
        data = msgspec.json.encode(record)
        try:
            write_atomically(self._path, data)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            try:
                write_atomically(self._path, data)
            except OSError:
                _logger.error("event=not_written_down file=%s reason=%r", self._path, str(error))


def kill_node(node_folder: Path, pids: Iterable[int]) -> None:
    """End a node as if its machine were gone: all that is written down, these, its memory, and this process last."""
    record = NodeFile(node_folder).read()
    others = [pid for pid in (record.pids() if record else []) if pid != os.getpid()]
    kill_trees([*others, *pids])
    shutil.rmtree(node_folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_trees(pids: list[int]) -> None:
    """SIGKILL these processes and all that descend from them."""
    doomed: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            doomed += [process, *process.children(recursive=True)]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
