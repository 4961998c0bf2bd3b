"""Typed messages between controller and agents.

msgspec structs, tagged and bounded: no pickle crosses a socket. Each carries the generation that it speaks of;
a message of an older generation is dropped by whoever gets it (fencing). What launchers and the controller say to each
other is in `engine_messages.py`. One protocol, one file: both ends need all of it.
"""

from __future__ import annotations

import signal

import msgspec

from ftrain.link import Certified, Misfit, ReplicaDigest
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.questions import Question, Reply
from ftrain_launcher.work import Work
from ftrain_snapshot.messages import DaemonStatus, Inventory, Origin, Peer, SnapshotId
from ftrain_snapshot.storage import DurableId

PROTOCOL_VERSION = 2
MESSAGE_BYTES_MAX = 16 * 2**20
"""Longest message that either side takes."""


class DurableSearch(msgspec.Struct, frozen=True):
    """What a look at the storage brought."""

    newest: DurableId | None = None
    failure: str = ""
    """Why it could not be looked at; empty: it was."""


class RankState(msgspec.Struct, frozen=True):
    """One worker as its agent sees it."""

    rank: int
    local_rank: int
    pid: int | None
    state: str
    """``starting``, ``restored``, ``running``, ``halted`` (it stands after a step, for a planned change), ``finished``
    or ``exited``."""
    step: int | None = None


class Failure(msgspec.Struct, frozen=True):
    """What the training function raised."""

    step: int | None
    error: str
    traceback: str
    communication: bool
    not_finite: bool = False
    """The loss was infinite or no number, in steps one after the other."""
    newest_version: int | None = None
    """The newest snapshot that the rank knew then; told with ``not_finite`` only."""
    misfit: Misfit | None = None
    """There are too many or too few ranks for the script's device mesh."""


# ---- agent -> controller


class Join(msgspec.Struct, frozen=True, tag="join", kw_only=True):
    """First on every connection; after a reconnect it says what still runs."""

    node: str
    host: str
    """The address where its daemon and its stores listen."""
    hostname: str = ""
    failure_domain: str = ""
    """What it shares with the nodes that may be lost together with it: a host, rack or switch; empty: nothing."""
    agent_pid: int
    daemon_pid: int | None
    daemon_port: int
    generation: int = 0
    """The generation of the workers that it runs; 0: none."""
    stopped: int = 0
    """The newest generation for which it has stopped the older ones."""
    ranks: tuple[RankState, ...] = ()
    protocol: int = PROTOCOL_VERSION
    term: int = 0
    """The newest controller's that it has promised to obey (`fencing.py`); 0: the job has one candidate alone."""
    accepted: int = 0
    """The newest generation whose ranks it took, though perhaps not all of them run yet, or any more."""
    forming: bool = False
    """It is taking those ranks right now, and will say how that went: that none of them runs yet means nothing."""


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat", kw_only=True):
    """Says that the agent lives, and how far its workers and its daemon are."""

    node: str
    generation: int
    ranks: tuple[RankState, ...]
    daemon_pid: int | None
    daemon: DaemonStatus | None
    inventory: Inventory | None = None


class WorkerExit(msgspec.Struct, frozen=True, tag="worker_exit", kw_only=True):
    """A worker is gone, or has said that its training function raised."""

    node: str
    generation: int
    rank: int
    pid: int
    code: int | None = None
    signal: int | None = None
    with_zygote: bool = False
    """It was killed since its node's zygote had ended."""
    finished: bool = False
    """The training function had returned before."""
    failure: Failure | None = None
    step: int | None = None
    """The last step that it committed in any generation."""
    last_lines: tuple[str, ...] = ()


class Stopped(msgspec.Struct, frozen=True, tag="stopped", kw_only=True):
    """No worker of an older generation runs here; this is what the daemon holds."""

    node: str
    generation: int
    inventory: Inventory
    store_port: int | None = None
    """Where the new generation's store listens, if this node was asked to host it."""
    durable: DurableSearch | None = None
    """What is on storage, if this node was asked to look."""
    staying: int = 0
    """Workers that have left, and wait for their next place in the same processes."""


class RankRestored(msgspec.Struct, frozen=True, tag="restored"):
    """A rank has its state back."""

    node: str
    generation: int
    rank: int
    version: int | None
    time: float
    read_bytes: int = 0
    kept_bytes: int = 0
    """What it had not to read, since it still held it."""


class RankStepped(msgspec.Struct, frozen=True, tag="stepped"):
    """A rank committed its first step of this generation."""

    node: str
    generation: int
    rank: int
    step: int
    time: float


class StateCertified(msgspec.Struct, frozen=True, tag="state_certified"):
    """What another number of nodes had captured is proved to be whole here, before the first step."""

    node: str
    generation: int
    certificate: Certified


class Held(msgspec.Struct, frozen=True, tag="held"):
    """The ranks of a node wait at their next commit, as `Hold` asked."""

    node: str
    generation: int
    attempt: int
    step: int
    """The last step that any of them had begun to commit by then; none passes the next one without a look."""


class RankHalted(msgspec.Struct, frozen=True, tag="rank_halted"):
    """A rank has come to the step of `HaltAfter`, or had to go on."""

    node: str
    generation: int
    rank: int
    step: int
    sealed: bool
    """It has captured that step, and waits to be ended; False: it goes on."""
    time: float


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Something other than a worker failed on a node."""

    node: str
    generation: int
    kind: str
    """``daemon_exit`` (restarted), ``chunks_damaged``, ``unlike_ranks``, ``folder_gone``: training goes on;
    ``store_lost``, ``form_failed``, ``restore_failed``."""
    reason: str


class DurableEnded(msgspec.Struct, frozen=True, tag="durable_ended"):
    """A node's part of a durable checkpoint is written, or will not be."""

    node: str
    generation: int
    position: int
    snapshot: SnapshotId
    failure: str
    """Why not; empty: it is written, and if ``position`` is 0, the checkpoint exists."""


class ArenaShort(msgspec.Struct, frozen=True, tag="arena_short"):
    """The shared memory of a node cannot hold the snapshots."""

    node: str
    generation: int
    needed_bytes: int
    available_bytes: int
    goes_on: bool = False
    """The job trains without snapshots of its own meanwhile: that of another world is kept."""


class ReplicaDigests(msgspec.Struct, frozen=True, tag="replica_digests"):
    """What a rank shares with others, as it was after a step (`detect.divergence`)."""

    node: str
    generation: int
    rank: int
    step: int
    digests: tuple[ReplicaDigest, ...]


class Recalled(msgspec.Struct, frozen=True, tag="recalled"):
    """Answer to `Recall`."""

    node: str
    form: Form


FromAgent = (
    Join
    | Recalled
    | Heartbeat
    | WorkerExit
    | Stopped
    | RankRestored
    | RankStepped
    | StateCertified
    | Held
    | RankHalted
    | Trouble
    | DurableEnded
    | ArenaShort
    | NodeReport
    | Reply
    | ReplicaDigests
)

# ---- controller -> agent


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
