"""The coordinator's records of nodes and ranks, and the moves that they may make."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ftrain_launcher.from_agent import DurableSearch
from ftrain_launcher.job.events import Leave
from ftrain_snapshot.inventory import Inventory


class NodeState(StrEnum):
    """Where a node stands in its life."""

    STARTING = "starting"
    IDLE = "idle"
    """Joined, holds no ranks: a spare."""
    CORDONED = "cordoned"
    """Joined, holds no ranks, and is to be given none."""
    ACTIVE = "active"
    AWAY = "away"
    """Its agent is not connected; the grace time runs."""
    LOST = "lost"
    RELEASED = "released"
    """Told to go, or gone after the job's end."""


_MOVES: dict[NodeState, frozenset[NodeState]] = {
    NodeState.STARTING: frozenset({NodeState.IDLE, NodeState.CORDONED, NodeState.LOST, NodeState.RELEASED}),
    NodeState.IDLE: frozenset(
        {NodeState.CORDONED, NodeState.ACTIVE, NodeState.AWAY, NodeState.LOST, NodeState.RELEASED}
    ),
    NodeState.CORDONED: frozenset({NodeState.IDLE, NodeState.AWAY, NodeState.LOST, NodeState.RELEASED}),
    NodeState.ACTIVE: frozenset(
        {NodeState.IDLE, NodeState.CORDONED, NodeState.AWAY, NodeState.LOST, NodeState.RELEASED}
    ),
    NodeState.AWAY: frozenset(
        {NodeState.IDLE, NodeState.CORDONED, NodeState.ACTIVE, NodeState.LOST, NodeState.RELEASED}
    ),
    NodeState.LOST: frozenset(),
    NodeState.RELEASED: frozenset(),
}


class Phase(StrEnum):
    """Where the job stands."""

    GATHERING = "gathering"
    """Waiting for the first nodes."""
    STOPPING = "stopping"
    """A new generation is announced; its members stop the old one."""
    RUNNING = "running"
    ENDING = "ending"
    """Agents have been told to shut down."""
    ENDED = "ended"


_PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.GATHERING: frozenset({Phase.STOPPING, Phase.ENDING}),
    Phase.STOPPING: frozenset({Phase.STOPPING, Phase.RUNNING, Phase.ENDING}),
    Phase.RUNNING: frozenset({Phase.STOPPING, Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class IllegalMove(Exception):
    """A state machine was asked for a move that it does not have: a defect of ours, never of a user."""


class Cordon(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node is to be given no ranks. One that has some gives them away when a generation is formed."""

    reason: str
    since: float
    quarantined: bool = False
    """The policy said so, and not an operator."""
    leave: Leave = Leave.AT_NEXT_FAULT
    """When those that it has are to be moved, once another node can take over."""
    returning: bool = False
    """It comes back if it passes its health check."""


class Health(msgspec.Struct, frozen=True):
    """How a node's last health check went."""

    ok: bool
    reason: str
    time: float


class Node(msgspec.Struct, kw_only=True):
    """One node, as the coordinator knows it."""

    name: str
    number: int
    """Its place in the order in which nodes were asked for or came: the first ones get the first positions."""
    state: NodeState = NodeState.STARTING
    position: int | None = None
    """Its place in the job, once it has held ranks or was chosen to, until it is lost or gives them away."""
    formed: int = 0
    """The newest generation whose ranks it was given; 0: none yet."""
    connection: int | None = None
    host: str = ""
    hostname: str = ""
    daemon_port: int = 0
    failure_domain: str = ""
    """Whom it may be lost together with; empty: nobody."""
    meant_for: int | None = None
    """The position that its host asked for."""
    launcher: str = ""
    """The mark of the host's launcher, that offered it."""
    deadline: float | None = None
    """When waiting for it ends: to join, to come back, or to stop."""
    away_since: float | None = None
    """When its agent was last heard, while it is away."""
    inventory: Inventory | None = None
    """What it said that it holds, when it stopped for the generation that is being formed."""
    store_port: int | None = None
    """Where that generation's store listens, if this node hosts it."""
    durable: DurableSearch | None = None
    """What it found on storage, if it was asked to look."""
    staying: int = 0
    """Workers of it that have left the last generation, and wait for their place in this one."""
    cordon: Cordon | None = None
    """Of a host's node that is gone: also the next one of that host gets no ranks."""
    health: Health | None = None
    unchecked: bool = False
    """With ``--preflight``: its health is not known since it came."""

    def move(self, state: NodeState) -> None:
        """Change state, along the table of moves only."""
        if state is self.state:
            return
        if state not in _MOVES[self.state]:
            raise IllegalMove(f"node {self.name}: {self.state} -> {state}")
        self.state = state

    @property
    def overdue(self) -> str:
        """What it failed to do, if its deadline has passed."""
        match self.state:
            case NodeState.STARTING:
                return "it did not join in time"
            case NodeState.AWAY:
                return "its agent did not come back"
            case _:
                return "it did not stop its workers in time"

    @property
    def gone(self) -> bool:
        """Nothing more is expected of it."""
        return self.state in (NodeState.LOST, NodeState.RELEASED)


def check_phase(old: Phase, new: Phase) -> Phase:
    """Return the new phase if the job may go there."""
    if new not in _PHASES[old]:
        raise IllegalMove(f"job: {old} -> {new}")
    return new


class Rank(msgspec.Struct, kw_only=True):
    """One rank of the newest generation that was formed."""

    rank: int
    node: str
    restored: bool = False
    stepped: bool = False
    """It has committed a step of this generation, or has finished without having one to do."""
    finished: bool = False
