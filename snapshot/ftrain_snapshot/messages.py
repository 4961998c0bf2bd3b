"""The words that daemons, workers and agents exchange about snapshots.

Every message is a tagged, bounded msgspec struct: no pickle crosses a socket. A *lane* is one local rank;
a *position* is a node's place in the job (its GROUP_RANK), stable across generations: a spare takes over
the position of the node it replaces, so that parity written for a position stays valid.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class SnapshotId(msgspec.Struct, frozen=True, order=True):
    """One snapshot of the whole job. Two captures of one step in different generations never mix."""

    version: int
    """The step after which the state was captured."""
    generation: int
    """The generation whose workers captured it."""
    slot: int
    """Its slot: the same one on every node, chosen once by the gate."""


class Holding(msgspec.Struct, frozen=True):
    """What one node holds of one snapshot."""

    snapshot: SnapshotId
    position: int
    """The position whose share this is."""
    data: bool
    """Every lane of this position is sealed here."""
    parity: bool
    """This position's parity is complete here."""
    data_bytes: int = 0
    parity_bytes: int = 0


class Inventory(msgspec.Struct, frozen=True):
    """All that a node holds, read from its memory when asked."""

    holdings: tuple[Holding, ...] = ()


class Peer(msgspec.Struct, frozen=True):
    """Where the daemon of a position listens for other daemons."""

    position: int
    node: str
    host: str
    port: int


class Membership(msgspec.Struct, frozen=True):
    """One generation as a daemon sees it."""

    generation: int
    position: int
    lanes: int
    """Local ranks per node; the same on every node."""
    parity: int
    """Parity chunks per stripe; 0 on a single node."""
    peers: tuple[Peer, ...]
    """All nodes of the job in order of position, this one included."""
    restore: SnapshotId | None = None
    """The snapshot that this generation starts from; everything newer is dropped."""
    resumed: bool = False
    """This generation already runs: the daemon was restarted under it and must drop nothing."""


class Levels(msgspec.Struct, frozen=True):
    """The job's newest version at each level, as the gate knows them (None: none yet)."""

    sealed: int | None = None
    protected: int | None = None
    durable: int | None = None


class DaemonStatus(msgspec.Struct, frozen=True):
    """What an agent reports of its daemon at each heartbeat."""

    generation: int
    gate: bool
    """This daemon is the gate: its levels are those of the job."""
    levels: Levels
    taken: int
    """Snapshots begun since this daemon was started."""
    skipped: int
    """Snapshots skipped because an earlier one was still being protected."""
    restored: bool
    """All local bytes of the generation's restore snapshot are in place (True if there is none)."""
    failure: str = ""
    """Why the restore cannot be done; empty while it can."""


# Between a node's own processes and its daemon (client.py), on the node's unix socket.


class GetInventory(msgspec.Struct, frozen=True, tag="get_inventory"):
    """What do you hold? Answered by an ``Inventory``."""


class GetStatus(msgspec.Struct, frozen=True, tag="get_status"):
    """How are you? Answered by a ``DaemonStatus``."""


class ClientHello(msgspec.Struct, frozen=True, tag="hello"):
    """First on every connection. The daemon ends some time after its last agent has gone."""

    role: Literal["agent", "worker"]


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Serve this generation; everything older is fenced off."""

    membership: Membership


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Remove your files and end."""


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Have room for this lane, in all slots."""

    lane: int
    data_bytes: int


class WaitRestored(msgspec.Struct, frozen=True, tag="wait_restored"):
    """Answer once the bytes that this generation starts from are in place."""

    generation: int


class Sealed(msgspec.Struct, frozen=True, tag="sealed"):
    """A lane of this node is complete. Not answered."""

    lane: int
    snapshot: SnapshotId


class Skip(msgspec.Struct, frozen=True, tag="skip"):
    """A rank of this node could not capture this snapshot: the job must give it up. Not answered."""

    snapshot: SnapshotId


class Skipped(msgspec.Struct, frozen=True, tag="skipped"):
    """The gate was closed when this version was due. Not answered."""

    version: int


Request = (
    ClientHello | Configure | GetInventory | GetStatus | Shutdown | Reserve | WaitRestored | Sealed | Skip | Skipped
)


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The request is carried out."""


class InventoryReply(msgspec.Struct, frozen=True, tag="inventory"):
    """Answer to GetInventory."""

    inventory: Inventory


class StatusReply(msgspec.Struct, frozen=True, tag="status"):
    """Answer to GetStatus."""

    status: DaemonStatus


class TooSmall(msgspec.Struct, frozen=True, tag="too_small"):
    """Answer to Reserve: the arena cannot hold it."""

    needed_bytes: int
    available_bytes: int


class Incomplete(msgspec.Struct, frozen=True, tag="incomplete"):
    """Answer to WaitRestored: it cannot be restored, and why."""

    reason: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Any other reason why a request is not carried out."""

    reason: str


Reply = Done | InventoryReply | StatusReply | TooSmall | Incomplete | Refused
