"""What all engines do: run nodes on this machine, one agent process a node, with a folder in shared memory.

It lives in the launcher, which is the subreaper of everything it starts: whatever loses its parent comes back
here, so that at the end nothing can be left. An agent that dies is started again and re-adopts its workers, and
what keeps them, its daemon or its zygote, if one of these lives; without both, or without its memory, it is a lost
node, and the controller hears of it at once.
"""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import psutil

from ftrain_launcher.engine_messages import EngineHello, FromEngine, NodeGone
from ftrain_launcher.jobs import JobFolder
from ftrain_launcher.node.state import NodeFile, NodeRecord, kill_trees
from ftrain_launcher.processes import nursery
from ftrain_launcher.processes.pidfds import Child, PidHandle

_OTHERS_FOLLOW_SECONDS = 0.05
"""A node that is killed loses its processes one after the other: only later is it the agent's death alone."""
_RESTARTS_MAX = 5
"""Agent deaths in a row, without the node being given up, until the node is called lost."""


class Engine(ABC):
    """Starts, watches and reaps this machine's nodes; ``tell`` takes what the controller must hear."""

    def __init__(self, folder: JobFolder, tell: Callable[[FromEngine], None]) -> None:
        self._folder = folder
        record = folder.record()
        self._arena = Path(record.arena_folder)
        self._logs = Path(record.config.work.log_folder)
        self._tell = tell
        self._domains = record.failure_domains
        self._agents: dict[str, Child] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, NodeRecord] = {}
        """What each node's agent last wrote down: a lost node has lost that, too."""
        self._stopping = False

    @abstractmethod
    def hello(self) -> EngineHello:
        """What to say first on every connection to the controller."""

    @abstractmethod
    def _failure_domain(self, node: str) -> str:
        """The label of one of the nodes."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes whose agent is watched, or of which something may be left."""
        return tuple(dict.fromkeys((*self._watchers, *self._known)))

    @property
    def pids(self) -> frozenset[int]:
        """The agents' processes: somebody waits for each."""
        return frozenset(p.pid for p in self._agents.values() if p.returncode is None)

    def remember(self) -> None:
        """Note which processes belong to which node, for when the node's folder is gone."""
        for node in self._watchers:
            record = NodeFile(self._arena / node).read()
            if record is not None:
                self._known[node] = record

    def start(self, node: str) -> None:
        """Start one node; its agent joins the controller by itself."""
        if node not in self._watchers:
            self._watchers[node] = asyncio.create_task(self._watch(node))

    async def _watch(self, node: str) -> None:
        for _ in range(_RESTARTS_MAX):
            process = self._agents[node] = self._start_agent(node)
            code = await process.wait()
            if self._stopping:
                break
            if code == 0 or not await self._lives(node):
                self._tell(NodeGone(node, "its agent and its daemon are gone"))
                break
        else:
            self._tell(NodeGone(node, f"its agent died {_RESTARTS_MAX} times"))
        del self._watchers[node]
        self._freed()

    @abstractmethod
    def _freed(self) -> None:
        """A node ended, or the last of it was cleared away."""

    def _start_agent(self, node: str) -> Child:
        """Workers' output goes to our terminal through the agent; what that says of itself, to its log."""
        with (self._logs / f"agent-{node}.log").open("ab") as log:
            arguments = (
                *("--job-folder", str(self._folder.path)),
                *("--node", node),
                *("--failure-domain", self._failure_domain(node)),
                *("--errors-fd", "3"),
            )
            return Child(nursery.start(self._arena, "ftrain_launcher.node.agent", arguments, (1, log.fileno(), 2)))

    async def _lives(self, node: str) -> bool:
        """Whether another agent finds something of it."""
        known = self._record(node)
        keepers = [pid for pid in (known.daemon_pid, known.zygote_pid) if pid is not None] if known is not None else []
        if all(await asyncio.gather(*(_gone_within(pid, _OTHERS_FOLLOW_SECONDS) for pid in keepers))):
            return False
        # On a busy machine the dead take longer. With the folder the node's memory is gone, whatever still runs of it.
        return NodeFile(self._arena / node).read() is not None

    def _record(self, node: str) -> NodeRecord | None:
        return NodeFile(self._arena / node).read() or self._known.get(node)

    def reap(self, node: str) -> None:
        """Nothing of this node may go on running, and its memory is given back."""
        known = self._record(node)
        agent = self._agents.get(node)
        pids = [agent.pid] if agent is not None and agent.returncode is None else []
        if known is not None:
            pids += known.pids()
        # Whatever this job started descends from its launcher; a pid that does not has been given to somebody else.
        ours = {child.pid for child in psutil.Process().children(recursive=True)}
        kill_trees([pid for pid in pids if pid in ours])
        self._known.pop(node, None)
        shutil.rmtree(self._arena / node, ignore_errors=True)
        self._freed()

    async def close(self) -> None:
        """End whatever is left, and give all memory back."""
        self._stopping = True
        kill_trees([child.pid for child in psutil.Process().children()])
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        shutil.rmtree(self._arena, ignore_errors=True)


async def _gone_within(pid: int, seconds: float) -> bool:
    """Does this process end within the given time? A zombie has ended."""
    try:
        process = PidHandle(pid)
    except ProcessLookupError:
        return True
    try:
        return await process.wait_ended(seconds)
    finally:
        process.close()
