"""What the controller tells an agent: which generation to stop, form or halt, what to write, whom to obey.

msgspec structs, tagged and bounded; an agent drops what speaks of an older generation than its own (fencing). The other
direction is in `from_agent.py`; what launchers and the controller say to each other in `engine_messages.py`.
"""

from __future__ import annotations

import signal

import msgspec

from ftrain_launcher.questions import Question
from ftrain_launcher.work import Work
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId


class Stand(msgspec.Struct, frozen=True, tag="stand"):
    """First on every line of a job with several candidates for its controller: who is at this end."""

    term: int
    """The controller's, if it leads; else the newest that this candidate knows of."""
    leads: bool
    leader: int | None = None
    """Which candidate leads as far as this one knows, that does not."""


class Elect(msgspec.Struct, frozen=True, tag="elect"):
    """Promise to obey nobody of a lower term; answered by another `Join`."""

    term: int


class Recall(msgspec.Struct, frozen=True, tag="recall"):
    """Say what was told of the newest generation that the node took ranks of: this candidate does not know it."""


STORE_SECONDS_MAX = 40.0
"""How long a node may take until the store that it hosts listens: while the job begins its zygote forks between two
imports, and one of them may take many seconds of a machine that is busy."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Leave every generation older than this one: end its workers, say what the daemon holds."""

    generation: int
    host_store: bool
    """Start the new generation's store here."""
    search_durable: bool = False
    """Look what is on storage."""
    search_below: int | None = None
    """Only versions below this one count there; None: all do."""
    suspects: tuple[int, ...] = ()
    """Ranks that the detector has named: their processes must not go on."""


class Cordoned(msgspec.Struct, frozen=True):
    """A node that is to be given no ranks, and why."""

    node: str
    reason: str
    since: float
    quarantined: bool
    """The policy said so, and not an operator."""


class Form(msgspec.Struct, frozen=True, tag="form", kw_only=True):
    """Take these ranks in this generation and start from this snapshot."""

    generation: int
    position: int
    """-1: there are no ranks for this node, but others read what it holds of the origin."""
    peers: tuple[Peer, ...]
    store_host: str
    store_port: int
    restore: SnapshotId | None
    origin: Origin | None = None
    """What to start from where that was captured by another number of nodes; then ``restore`` is None."""
    older: Origin | None = None
    """Beside an origin: what to keep for the case that it turns out to be doubtful."""
    groups: tuple[tuple[int, ...], ...] = ()
    """The positions that are coded together: the same for as long as the job has so many nodes."""
    durable_start: DurableId | None = None
    """What to start from where there is nothing in memory."""
    durable_newest: int | None = None
    """The newest version on storage."""
    quorums: tuple[tuple[str, ...], ...] = ()
    """Where several hosts may run the controller: of whose nodes most are needed for the next generation, as long as it
    is not known that this one, the last of these, has trained (`fencing.py`)."""
    world: int = 0
    """The first generation of so many nodes, coded like this."""
    cordoned: tuple[Cordoned, ...] = ()
    """Those that there are. This, and the next, are for a controller that nobody else can tell (`Recalled`)."""
    incidents: int = 0
    """How many there were."""
    work: Work

    def rank_of(self, lane: int) -> int:
        """The rank that runs in this lane of the node."""
        return self.position * self.work.nproc_per_node + lane


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """Let the ranks wait at their next commit, and say how far they had come. For a moment: `HaltAfter` follows."""

    generation: int
    attempt: int


class HaltAfter(msgspec.Struct, frozen=True, tag="halt_after"):
    """All ranks go on to the end of this step, capture it, and wait there to be ended."""

    generation: int
    step: int


class GoOn(msgspec.Struct, frozen=True, tag="go_on"):
    """The halt is given up: nobody waits any more."""

    generation: int


class WriteDurable(msgspec.Struct, frozen=True, tag="write_durable"):
    """Write this node's part of a snapshot that is pinned. Said again to an agent that may not have heard it."""

    snapshot: SnapshotId


class PinDurable(msgspec.Struct, frozen=True, tag="pin_durable"):
    """To the gate's node: this version, or the first safe one after it, is to go to storage, due or not."""

    generation: int
    version: int


class Unpin(msgspec.Struct, frozen=True, tag="unpin"):
    """A snapshot is on storage, or will not be: end its writer here, and let the gate use its slot."""

    snapshot: SnapshotId


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End workers (ask, grace, kill), daemon and agent, and leave nothing behind."""

    reason: str
    grace_seconds: float
    signal: int = signal.SIGTERM
    """What asks the workers."""


class Inject(msgspec.Struct, frozen=True, tag="inject"):
    """Break something, on an operator's word."""

    kind: str
    """``kill-worker``, ``kill-daemon``, ``kill-agent`` or ``kill-node``."""
    rank: int | None = None


ToAgent = (
    Stand
    | Elect
    | Recall
    | Stop
    | Form
    | Hold
    | HaltAfter
    | GoOn
    | WriteDurable
    | PinDurable
    | Unpin
    | Shutdown
    | Inject
    | Question
)
