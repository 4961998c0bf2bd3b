"""What the coordinator hears and what it answers.

Events are journaled and replayed; commands are carried out by the controller. Messages of agents that matter
to the state machine are events as they are; the rest are defined here.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ftrain_launcher.detect.patience import WentOn
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.engine_messages import FlushJob, HostLeaves, NodeGone, ReapNode, StartNode, StopJob
from ftrain_launcher.from_agent import (
    ArenaShort,
    DurableEnded,
    Held,
    Join,
    RankHalted,
    RankRestored,
    RankStepped,
    StateCertified,
    StateDescribed,
    StateUndescribed,
    Stopped,
    Trouble,
    WorkerExit,
)
from ftrain_launcher.to_agent import Form, ToAgent
from ftrain_launcher.work import Work
from ftrain_snapshot.words import SnapshotId

LAST_CALL_SECONDS = 30.0
"""Once the fewest nodes are here with which the job can begin, more are waited for so long; as torchrun does."""


class Detect(StrEnum):
    """What follows from the detector's verdicts (``--detect``)."""

    ACT = "act"
    WARN = "warn"
    """People are told, and nothing else."""
    OFF = "off"
    """None are asked for."""


class JobConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for; fixed for its life."""

    work: Work
    nodes: int
    """Nodes that hold ranks, if so many are there."""
    nodes_min: int | None = None
    """The job goes on with so few, if no more are there; None: as many as ``nodes``, always."""
    shrink_after_seconds: float = 0.0
    """How long to wait for another node before going on with fewer."""
    spares: int = 0
    """Nodes kept ready beside them."""
    hosts: bool = False
    """Nodes are real hosts, that come by themselves; else they are asked for."""
    host_wait_seconds: float = 300.0
    """How long to wait for a host where one is missing, before the job ends."""
    last_call_seconds: float = LAST_CALL_SECONDS
    """How long hosts up to ``nodes`` are waited for once ``nodes_min`` are there."""
    agent_grace_seconds: float = 5.0
    """How long an agent that left may take to come back and re-adopt its workers."""
    heartbeat_timeout_seconds: float = 10.0
    """How long a connected agent may be silent; a network may be cut for so long without a fault."""
    stop_timeout_seconds: float = 10.0
    """How long a node may take to stop an old generation."""
    start_timeout_seconds: float = 240.0
    """How long a new node may take to join. Its zygote's imports alone are given three minutes (`zygote_start.py`); of
    an agent that has ended its engine tells."""
    shutdown_grace_seconds: float = 5.0
    """How long workers get between SIGTERM and SIGKILL at the job's end."""
    preflight: bool = False
    """Check every node before the first generation is formed."""
    detect: Detect = Detect.ACT
    isolate_slow: bool = False
    """A node that stays slow gives its ranks to another."""
    candidates: tuple[str, ...] = ()
    """HOST:PORT of those that may run the controller, in order; empty: only the host that it began on."""

    @property
    def least(self) -> int:
        """The fewest nodes that the job goes on with."""
        return self.nodes if self.nodes_min is None else self.nodes_min

    @property
    def size(self) -> str:
        """How many nodes it has, in words."""
        return f"{self.least}:{self.nodes}" if self.elastic else str(self.nodes)

    @property
    def elastic(self) -> bool:
        """Its number of nodes may change."""
        return self.least < self.nodes


class JobStarted(msgspec.Struct, frozen=True, tag="job_started"):
    """Always the first event of a journal."""

    config: JobConfig


class HostCame(msgspec.Struct, frozen=True, tag="host_came"):
    """A host has room for a node."""

    launcher: str
    """Its launcher's mark: it may say the same thing twice."""
    hostname: str
    position: int | None = None
    """The position that it is meant for."""


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """An agent is connected; ``connection`` tells its connections apart."""

    join: Join
    connection: int


class Left(msgspec.Struct, frozen=True, tag="left"):
    """An agent's connection closed, or it was silent for too long."""

    node: str
    connection: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """The job's newest versions at each level, as its gate reports them."""

    generation: int
    sealed: int | None
    protected: int | None
    pinned: SnapshotId | None = None
    """What it keeps to be written to storage."""
    in_flight: bool = False
    """A snapshot is being captured or protected."""


class Diagnosed(msgspec.Struct, frozen=True, tag="diagnosed"):
    """The detector has found something."""

    verdict: Verdict

    @property
    def generation(self) -> int:
        """The generation that it is about."""
        return self.verdict.generation


class QuickAgain(msgspec.Struct, frozen=True, tag="quick_again"):
    """A rank that the detector had named as slow keeps up with its peers again."""

    generation: int
    rank: int
    step: int
    """By then."""


class Leave(StrEnum):
    """When a cordoned node's ranks are moved to another node."""

    AT_NEXT_FAULT = "at_next_fault"
    SOON = "soon"
    """At the end of a step that all ranks stop after: nothing is lost."""
    NOW = "now"


class CordonNode(msgspec.Struct, frozen=True, tag="cordon_node"):
    """An operator wants a node to be given no ranks."""

    node: str
    reason: str
    leave: Leave = Leave.AT_NEXT_FAULT


class UncordonNode(msgspec.Struct, frozen=True, tag="uncordon_node"):
    """An operator wants it back."""

    node: str
    force: bool = False
    """Without a health check."""


class NodeChecked(msgspec.Struct, frozen=True, tag="node_checked"):
    """The health of a node was checked, as `CheckNodes` asked."""

    node: str
    ok: bool
    """False: it is to hold no ranks."""
    reason: str
    """What was found, in words; empty: nothing."""


class ControllerRestarted(msgspec.Struct, frozen=True, tag="controller_restarted"):
    """The journal was replayed by a new controller: no agent is connected yet."""

    term: int = 0
    """Another candidate has taken over, in this term; 0: the last one was started again."""
    stopped: int = 0
    """Its predecessor may have announced generations up to this one, of which the journal does not know."""
    recalled: Form | None = None
    """The newest generation that was formed, as its nodes tell, where the journal does not know of it."""


class StoodStill(msgspec.Struct, frozen=True, tag="stood_still"):
    """The controller did not run for so long (a disk that did not answer, a machine that was busy): it heard nobody."""

    seconds: float


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """A deadline that the coordinator asked for has come."""


Event = (
    JobStarted
    | HostCame
    | Joined
    | Left
    | NodeGone
    | WorkerExit
    | Stopped
    | RankRestored
    | RankStepped
    | StateCertified
    | StateUndescribed
    | StateDescribed
    | Held
    | RankHalted
    | Trouble
    | DurableEnded
    | ArenaShort
    | Progress
    | Diagnosed
    | QuickAgain
    | WentOn
    | CordonNode
    | UncordonNode
    | NodeChecked
    | StopJob
    | FlushJob
    | HostLeaves
    | ControllerRestarted
    | StoodStill
    | Tick
)


class Send(msgspec.Struct, frozen=True, tag="send"):
    """Send a message to a node's agent."""

    node: str
    message: ToAgent


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """Tell the people who watch the job."""

    text: str


class CheckNodes(msgspec.Struct, frozen=True, tag="check_nodes"):
    """Check the health of these nodes, against each other; each is answered by a `NodeChecked`."""

    nodes: tuple[str, ...]


class EndJob(msgspec.Struct, frozen=True, tag="end_job"):
    """All is over."""

    exit_code: int
    message: str


Command = Send | StartNode | ReapNode | Announce | CheckNodes | EndJob
