"""One generation as its daemons see it: who is in it, how they are coded, and what they start from.

A *lane* is one local rank; a *position* is a node's place in the job (its GROUP_RANK), stable across generations: a
spare takes over the position of the node it replaces, so that parity written for a position stays valid.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ftrain_snapshot.words import Count, Name, Number, SnapshotId


class Peer(msgspec.Struct, frozen=True):
    """Where the daemon of a position listens for other daemons."""

    position: Count
    node: Name
    host: Name
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Origin(msgspec.Struct, frozen=True):
    """The snapshot that a generation starts from, and the world that captured it: another one than its own."""

    snapshot: SnapshotId
    nodes: Count
    """How many that world had: positions 0 to ``nodes`` - 1."""
    parity: Count
    groups: tuple[tuple[Count, ...], ...]
    """Of that world; empty: those of unlabelled nodes."""
    codec: Name
    holders: tuple[Peer, ...]
    """Nodes that hold its shares now, by their positions of that world; those that are lost are left out."""
    position: Number = -1
    """This node's position in that world; -1: it holds nothing of it. Differs from node to node."""

    @property
    def grouping(self) -> tuple[tuple[int, ...], ...] | int:
        """The groups as ``placement.group_of`` takes them."""
        return self.groups or self.nodes


class Membership(msgspec.Struct, frozen=True):
    """One generation as a daemon sees it."""

    generation: Number
    position: Number
    """-1: none; others read what this node holds of the origin."""
    lanes: Count
    """Local ranks per node; the same on every node."""
    parity: Count
    """Parity chunks per stripe; 0 on a single node."""
    peers: tuple[Peer, ...]
    """All nodes of the job in order of position, this one included."""
    restore: SnapshotId | None = None
    """The snapshot that this generation starts from; everything newer is dropped."""
    resumed: bool = False
    """This generation already runs: the daemon was restarted under it and must drop nothing."""
    groups: tuple[tuple[Count, ...], ...] = ()
    """The positions that are coded together, fixed when the job is first formed; empty: those of unlabelled nodes."""
    codec: Name = "auto"
    """Which engine computes parity: ``auto``, ``numpy``, ``isal`` or ``zfec``; the bytes are the same."""
    protect_bytes_per_second: Count = 0
    """What this daemon may send at most for parity; 0: no cap."""
    scrub: bool = True
    """Read stored chunks again in the background, and repair those whose checksum is wrong."""
    durable_every: Count = 0
    """The gate pins a safe snapshot for storage at every so many steps; 0: there is no storage."""
    durable_newest: Number | None = None
    """The newest version on storage when this generation began."""
    origin: Origin | None = None
    """What this generation starts from, if another world captured it; then ``restore`` is None."""
    older: Origin | None = None
    """Beside an origin: an older snapshot of another world, that is kept as long as there is room."""

    @property
    def grouping(self) -> tuple[tuple[int, ...], ...] | int:
        """The groups as ``placement.group_of`` takes them."""
        return self.groups or len(self.peers)
