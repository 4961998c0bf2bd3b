"""Typed messages between controller, agents and the engine that provides nodes.

msgspec structs, tagged and bounded: no pickle crosses a socket. Each carries the generation that it speaks of;
a message of an older generation is dropped by whoever gets it (fencing).
"""

from __future__ import annotations

import signal
from typing import Literal

import msgspec

from ftrain.link import Certified, Misfit, ReplicaDigest
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.processes.streams import Streams
from ftrain_launcher.questions import Question, Reply
from ftrain_snapshot.messages import DaemonStatus, Inventory, Origin, Peer, SnapshotId
from ftrain_snapshot.storage import DurableId

PROTOCOL_VERSION = 2
MESSAGE_BYTES_MAX = 16 * 2**20
"""Longest message that either side takes."""


class Durable(msgspec.Struct, frozen=True, kw_only=True):
    """Where checkpoints go that outlive the nodes' memory, and when."""

    url: str
    """Anything that fsspec opens, the same on every node; paths are absolute."""
    every: int
    """One is due at every so many steps."""
    keep: int = 2
    """So many complete ones stay."""
    write_timeout_seconds: float = 3600.0
    """How long the writing of one may take."""


class DurableSearch(msgspec.Struct, frozen=True):
    """What a look at the storage brought."""

    newest: DurableId | None = None
    failure: str = ""
    """Why it could not be looked at; empty: it was."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers run: the same on every node and in every generation, but that few nodes have less parity."""

    job: str
    argv: tuple[str, ...]
    """The script (or module name) and its arguments."""
    kind: Literal["script", "module", "exec"] = "script"
    """A script, a module (``-m``), or a program that is not Python."""
    folder: str
    """Working directory."""
    log_folder: str
    nproc_per_node: int
    snapshot_every: int
    """Steps between snapshots; 0: as often as costs little (`ftrain.cadence`)."""
    parity: int
    codec: str = "auto"
    """Which engine computes parity: ``auto``, ``numpy``, ``isal`` or ``zfec``."""
    protect_bytes_per_second: int = 0
    """What a node may send at most for parity; 0: no cap."""
    max_restarts: int
    restarts_chosen: bool = False
    """The user said how many; failures of scripts that tell no steps are then counted, not compared."""
    demote_after_nan: bool = True
    """After losses that are not finite, go on from a snapshot before the newest."""
    check_replicas: int = 100
    """Steps between comparisons of what must be equal on several ranks; 0: never."""
    collective_timeout_seconds: float | None = None
    """How long an operation of a process group may take, where the script does not say; None: torch's default."""
    deterministic_reduction: bool = False
    """Gradients are summed in an order that no world changes (docs/exactness.md)."""
    durable: Durable | None = None
    """None: snapshots are kept in memory alone."""
    zygote: bool = True
    """Fork the workers from a process that has torch imported."""
    in_process: bool = False
    """Workers that can go on in the next generation in the same processes (docs/recovery.md)."""
    standby: int = 0
    """Processes on each node that wait for a rank to be lost."""
    abort_grace_seconds: float = 2.0
    """How long a worker may take to leave its generation before it is killed."""
    environment: dict[str, str] = {}
    """Variables set for every worker, over the agent's own environment."""
    role: str = "default"
    """What workers are told that they are: torchrun's word."""
    streams: Streams = Streams()
    """What the terminal shows of them."""
    virtual_local_rank: bool = False
    """Each worker sees one GPU, its own, and LOCAL_RANK is 0."""
    numa_binding: str = ""
    """How workers are bound to the processors near their GPUs (`numa.MODES`); empty: they are not."""
    store_port: int = 0
    """Where each generation's store listens; 0: on any free port."""

    @property
    def start(self) -> Literal["fork", "exec"]:
        """How its processes are started."""
        return "fork" if self.zygote else "exec"


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
    """``daemon_exit`` (restarted) and ``chunks_damaged``, with which training goes on; ``store_lost``, ``form_failed``,
    ``restore_failed``."""
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

# ---- launcher (its engine) <-> controller


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A host that would take part, and what its user asked for: it must be the same on all hosts."""

    launcher: str
    """Tells launchers apart; made anew by each."""
    hostname: str
    job: str = ""
    """The name that the user gave; empty: none."""
    kind: str
    argv: tuple[str, ...]
    nodes: int
    nodes_min: int | None = None
    """None: as many as ``nodes``, always."""
    nproc_per_node: int
    parity: int
    node_rank: int | None = None
    """The position that this host is meant for."""
    protocol: int = PROTOCOL_VERSION


class StartNode(msgspec.Struct, frozen=True, tag="start_node"):
    """Provide one more node."""

    node: str


class ReapNode(msgspec.Struct, frozen=True, tag="reap_node"):
    """The job has given this node up: nothing of it may go on running."""

    node: str


class JobEnded(msgspec.Struct, frozen=True, tag="job_ended"):
    """The controller is done, or does not want this host; this is what the launcher returns."""

    exit_code: int
    message: str


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Answer to Knock: the job's record, in JSON."""

    record: bytes


ToEngine = StartNode | ReapNode | JobEnded | Welcome


class Knock(msgspec.Struct, frozen=True, tag="knock"):
    """A new host asks what the job is, and whether it is wanted; the line is closed after the answer."""

    offer: Offer


class EngineHello(msgspec.Struct, frozen=True, tag="engine"):
    """First on every connection of the engine, and whenever its last node is gone: the nodes that it knows to run."""

    nodes: tuple[str, ...]
    offer: Offer | None = None
    """The host that has room for a node; None: nodes are emulated, as many as are wanted."""


class NodeGone(msgspec.Struct, frozen=True, tag="node_gone"):
    """A node's processes are gone: there is no use in waiting for its agent."""

    node: str
    reason: str


class StopJob(msgspec.Struct, frozen=True, tag="stop_job"):
    """The user wants the job to end."""

    reason: str
    exit_code: int
    signal: int = signal.SIGTERM
    """What said so, and is handed on to the workers."""


class FlushJob(msgspec.Struct, frozen=True, tag="flush_job"):
    """The job is to end at the end of a step, with its state on storage (`flushing.py`)."""

    reason: str
    seconds: float
    """Within so many, the end of all processes included."""


class HostLeaves(msgspec.Struct, frozen=True, tag="host_leaves"):
    """A host is to be switched off: its node's ranks go to another at the end of a step, and it is let go then."""

    node: str
    reason: str


FromEngine = Knock | EngineHello | NodeGone | StopJob | FlushJob | HostLeaves
