"""The words that daemons, workers and agents exchange about snapshots.

Every message is a tagged, bounded msgspec struct: no pickle crosses a socket. A *lane* is one local rank;
a *position* is a node's place in the job (its GROUP_RANK), stable across generations: a spare takes over
the position of the node it replaces, so that parity written for a position stays valid.
"""

from __future__ import annotations

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
