"""A job driven by hand: the production coordinator, and the few lines that say what its nodes would answer."""

from __future__ import annotations

from ftrain_launcher import from_agent
from ftrain_launcher.control.journal import Entry, decode, encode, rebuild
from ftrain_launcher.engine_messages import NodeGone, ReapNode, StartNode
from ftrain_launcher.from_agent import (
    DurableSearch,
    Failure,
    Join,
    RankHalted,
    RankRestored,
    RankState,
    RankStepped,
    Stopped,
    WorkerExit,
)
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import (
    Announce,
    CheckNodes,
    Command,
    EndJob,
    Event,
    HostCame,
    JobConfig,
    JobStarted,
    Joined,
    Left,
    Progress,
    Send,
)
from ftrain_launcher.to_agent import Form, Hold, ToAgent
from ftrain_launcher.work import Work
from ftrain_snapshot.inventory import Holding, Inventory
from ftrain_snapshot.words import SnapshotId


def config(
    *,
    nodes: int = 3,
    spares: int = 1,
    parity: int = 1,
    nproc: int = 1,
    max_restarts: int = 10,
    hosts: bool = False,
) -> JobConfig:
    work = Work(
        job="job",
        argv=("train.py",),
        folder="/",
        log_folder="/",
        nproc_per_node=nproc,
        snapshot_every=1,
        parity=parity,
        max_restarts=max_restarts,
    )
    return JobConfig(work=work, nodes=nodes, spares=spares, hosts=hosts)


def snapshot(version: int, generation: int = 1, slot: int = 0) -> SnapshotId:
    return SnapshotId(version, generation, slot)


WHOLE = (True, True)
DATA = (True, False)
BOTH = {snapshot(4): WHOLE, snapshot(5, slot=1): DATA}
"""What each node holds when step 4 is protected and step 5 is sealed."""
Held = dict[SnapshotId, tuple[bool, bool]]


class Job:
    """Events go in through the journal's own lines; what comes out is kept by kind."""

    def __init__(self, job: JobConfig | None = None) -> None:
        self.config = job or config()
        self.coordinator = Coordinator(self.config)
        self.now = 100.0
        self.sent: list[tuple[str, ToAgent]] = []
        self.news: list[str] = []
        self.started: list[str] = []
        self.reaped: list[str] = []
        self.checks: list[CheckNodes] = []
        self.end: EndJob | None = None
        self._lines: list[bytes] = []
        self._connections = 0
        self.tell(JobStarted(self.config))

    def tell(self, event: Event, after: float = 0.01) -> list[Command]:
        """Something happens; what the coordinator makes of it is also returned."""
        self.now += after
        self._lines.append(encode(Entry(self.now, event)))
        commands = self.coordinator.handle(decode(self._lines[-1]).event, self.now)
        for command in commands:
            match command:
                case Send(node, message):
                    self.sent.append((node, message))
                case Announce(text):
                    self.news.append(text)
                case StartNode(node):
                    self.started.append(node)
                case ReapNode(node):
                    self.reaped.append(node)
                case CheckNodes():
                    self.checks.append(command)
                case EndJob():
                    self.end = command
        return commands

    def entries(self) -> list[Entry]:
        """The journal."""
        return [decode(line) for line in self._lines]

    def replayed(self) -> Coordinator:
        """A coordinator made from the journal."""
        first, *rest = self.entries()
        assert isinstance(first.event, JobStarted)
        return rebuild(first.event, first.now, rest)

    # ---- what nodes say

    def come(self, launcher: str, domain: str = "", position: int | None = None) -> str:
        """A host offers itself, and its agent connects; the node's name."""
        self.tell(HostCame(launcher, launcher, position))
        self.join(self.started[-1], domain=domain)
        return self.started[-1]

    def join(
        self,
        node: str,
        generation: int = 0,
        stopped: int = 0,
        ranks: tuple[int, ...] | None = None,
        domain: str = "",
        forming: bool = False,
    ) -> int:
        """Its agent connects; ``ranks``: those it runs, all of its own by default."""
        self._connections += 1
        if ranks is None:
            ranks = tuple(n for n, r in self.coordinator.ranks.items() if r.node == node and generation)
        join = Join(
            node=node,
            host=node,
            hostname=self.hostname(node),
            failure_domain=domain,
            agent_pid=1,
            daemon_pid=2,
            daemon_port=3,
            generation=generation,
            stopped=stopped,
            ranks=tuple(RankState(n, 0, 1000 + n, "running") for n in ranks),
            accepted=stopped if forming else 0,
            forming=forming,
        )
        self.tell(Joined(join, self._connections))
        return self._connections

    def hostname(self, node: str) -> str:
        """As its launcher said it, if there is one."""
        known = self.coordinator.nodes.get(node)
        return known.hostname if known is not None and known.launcher else f"the host of {node}"

    def connection(self, node: str) -> int:
        number = self.coordinator.nodes[node].connection
        assert number is not None
        return number

    def leave(self, node: str) -> None:
        self.tell(Left(node, self.connection(node)))

    def lose(self, node: str) -> None:
        self.tell(NodeGone(node, "killed"))

    def stopped(
        self,
        node: str,
        held: Held | None = None,
        port: int | None = 7,
        durable: DurableSearch | None = None,
        sealed: tuple[int, ...] = (),
    ) -> None:
        """It has stopped for the generation that is announced; ``durable``: what it found on storage; ``sealed``: what
        its gate knows."""
        position = self.coordinator.nodes[node].position
        assert position is not None
        holdings = tuple(Holding(s, position, data, parity) for s, (data, parity) in (held or {}).items())
        generation = self.coordinator.generation
        inventory = Inventory(holdings, sealed)
        self.tell(Stopped(node=node, generation=generation, inventory=inventory, store_port=port, durable=durable))

    def exit(self, rank: int, **how: object) -> None:
        self.tell(self.exit_of(rank, **how))

    def exit_of(self, rank: int, **how: object) -> WorkerExit:
        generation = self.coordinator.formed
        node = self.coordinator.ranks[rank].node
        return WorkerExit(node=node, generation=generation, rank=rank, pid=1000 + rank, **how)

    # ---- the usual course of things

    def gather(self) -> None:
        """All nodes come, in order."""
        for node in list(self.started):
            self.join(node)

    def stop_all(self, held: Held | None = None, but: tuple[str, ...] = ()) -> None:
        """All members answer; those that ran before hold the same, a new one nothing."""
        for node in self.members():
            if node not in but:
                ran = self.coordinator.nodes[node].formed > 0
                self.stopped(node, held if ran else None)

    def members(self) -> list[str]:
        return [name for name in self.coordinator.positions if name is not None]

    def step_all(self, step: int = 0) -> None:
        """All ranks restore and make a step."""
        for rank in self.coordinator.ranks.values():
            self.tell(RankRestored(rank.node, self.coordinator.formed, rank.rank, None, self.now))
        for rank in self.coordinator.ranks.values():
            self.tell(RankStepped(rank.node, self.coordinator.formed, rank.rank, step, self.now))

    def run(self) -> None:
        """From nothing to a running first generation."""
        self.gather()
        self.stop_all()
        self.step_all()
        self.sent.clear()

    def halt(self, step: int) -> None:
        """The ranks, who are asked to, stop after a step; it is protected at last."""
        formed, attempt = self.coordinator.formed, self.to(self.members()[0], Hold)[-1].attempt
        for node in self.members():
            self.tell(from_agent.Held(node, formed, attempt, step - 1))
        for rank in list(self.coordinator.ranks.values()):
            self.tell(RankHalted(rank.node, formed, rank.rank, step, True, self.now))
        self.tell(Progress(formed, step, step))

    # ---- what was sent

    def to(self, node: str, kind: type[ToAgent]) -> list[ToAgent]:
        return [message for name, message in self.sent if name == node and isinstance(message, kind)]

    def forms(self) -> dict[str, Form]:
        """The newest generation's messages, by node."""
        newest = self.coordinator.formed
        return {n: m for n, m in self.sent if isinstance(m, Form) and m.generation == newest}


def raised(error: str, step: int | None = 5, *, communication: bool = False) -> Failure:
    return Failure(step, error, f"Traceback of {error}", communication)
