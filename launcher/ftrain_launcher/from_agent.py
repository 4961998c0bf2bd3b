"""What an agent tells the controller: what its workers do and did, what its daemon holds, what else befell its node.

msgspec structs, tagged and bounded: no pickle crosses a socket. Each carries the generation that it speaks of; a
message of an older generation is dropped by whoever gets it (fencing). The other direction is in `to_agent.py`.
"""

from __future__ import annotations

import msgspec

from ftrain.link import Certified, Misfit, ReplicaDigest
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.protocol import PROTOCOL_VERSION
from ftrain_launcher.questions import Reply
from ftrain_launcher.to_agent import Form
from ftrain_snapshot.inventory import Inventory
from ftrain_snapshot.status import DaemonStatus
from ftrain_snapshot.storage import DurableId
from ftrain_snapshot.words import SnapshotId


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


class StateUndescribed(msgspec.Struct, frozen=True, tag="state_undescribed"):
    """What this generation captures is for as many ranks as there are, and for no others."""

    node: str
    generation: int
    reason: str


class StateDescribed(msgspec.Struct, frozen=True, tag="state_described"):
    """From this snapshot on all ranks of the node say what they capture in words for other numbers of ranks."""

    node: str
    generation: int
    version: int


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
    | StateUndescribed
    | StateDescribed
    | Held
    | RankHalted
    | Trouble
    | DurableEnded
    | ArenaShort
    | NodeReport
    | Reply
    | ReplicaDigests
)
