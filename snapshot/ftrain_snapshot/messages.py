"""The words that daemons, workers and agents exchange about snapshots.

Every message is a tagged, bounded msgspec struct: no pickle crosses a socket, and no number that would not fit where
it is written next. A *lane* is one local rank; a *position* is a node's place in the job (its GROUP_RANK), stable
across generations: a spare takes over the position of the node it replaces, so that parity written for a position
stays valid.

Words and requests stand in one file, though it is long: whoever speaks on a node's socket needs both.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Number = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
"""A version, a generation, a slot; -1: none. Fits the words of the control page and of headers."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 56)]
"""A position, a lane, a stripe, a length in bytes: sums of several still fit into 64 bits."""
Rank = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Reason = Annotated[str, msgspec.Meta(max_length=1 << 16)]
DESTINATIONS_MAX = 256
"""Nodes that one request has probed."""
RANGES_MAX = 4096
"""Ranges in one read."""
DAMAGES_MAX = 1024
"""Ranges of damage that a node tells of one by one."""


class SnapshotId(msgspec.Struct, frozen=True, order=True):
    """One snapshot of the whole job. Two captures of one step in different generations never mix."""

    version: Number
    """The step after which the state was captured."""
    generation: Number
    """The generation whose workers captured it."""
    slot: Number
    """Its slot: the same one on every node, chosen once by the gate."""


class Damage(msgspec.Struct, frozen=True, array_like=True):
    """Chunks that are missing or damaged on a node: its part, data or parity, of stripes ``first`` to ``stop``."""

    lane: Count
    rotation: Count
    first: Count
    stop: Count
    """One past the last stripe."""


Damages = Annotated[tuple[Damage, ...], msgspec.Meta(max_length=DAMAGES_MAX)]


class Holding(msgspec.Struct, frozen=True):
    """What one node holds of one snapshot."""

    snapshot: SnapshotId
    position: Count
    """The position whose share this is."""
    data: bool
    """Every lane of this position is sealed here."""
    parity: bool
    """This position's parity is complete here."""
    data_bytes: Count = 0
    parity_bytes: Count = 0
    damage: Damages = ()
    """Chunks of both that are known to be damaged; the rest is there."""


Holdings = Annotated[tuple[Holding, ...], msgspec.Meta(max_length=16)]
"""Of a node's three slots: what is in them, and whose parity is."""


class Inventory(msgspec.Struct, frozen=True):
    """All that a node holds, read from its memory when asked."""

    holdings: Holdings = ()
    sealed: tuple[int, ...] = ()
    """Of each position the newest version that it said it has sealed; -1: none. Only the gate's daemon knows."""


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


class Levels(msgspec.Struct, frozen=True):
    """The job's newest version at each level, as the gate knows them (None: none yet)."""

    sealed: int | None = None
    protected: int | None = None
    durable: int | None = None


class Volume(msgspec.Struct):
    """What snapshots cost this node, in bytes."""

    captured_bytes: int = 0
    """Length of this node's units: the full state."""
    copied_bytes: int = 0
    """What its workers copied of it; the rest had not changed."""
    sent_bytes: int = 0
    """What was sent for the parity that others keep of it."""
    received_bytes: int = 0
    """What others sent for the parity kept here."""
    coded_bytes: int = 0
    """What was folded into that parity."""
    kept_chunks: int = 0
    """Chunks of parity that were kept as they were, since nothing in their stripe had changed."""

    def add(self, other: Volume) -> None:
        """Count ``other`` in."""
        for field in self.__struct_fields__:
            setattr(self, field, getattr(self, field) + getattr(other, field))


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
    exposed_seconds: float = 0.0
    """How long one more loss than is covered would have been fatal, or have cost a step, by now; 0: it would not.
    Only the gate's daemon knows."""
    exposed_last_seconds: float = 0.0
    """How long the last such time took that is over."""
    last: Volume = msgspec.field(default_factory=Volume)
    """What the newest snapshot that is protected here took."""
    total: Volume = msgspec.field(default_factory=Volume)
    """What all snapshots took that were protected here since this daemon was started."""
    cpu_seconds: float = 0.0
    """Processor time of this daemon since it was started."""
    pinned: SnapshotId | None = None
    """The snapshot whose slot is kept until it is on storage. Only the gate's daemon knows."""
    in_flight: bool = False
    """A snapshot has been begun of which it is not decided yet how safe it will be. Only the gate's daemon knows."""
    damaged: int = 0
    """Chunks stored here that were found damaged in this generation."""
    repaired: int = 0
    """Of these, how many are right again."""


# Between a node's own processes and its daemon (client.py), on the node's unix socket.


class GetInventory(msgspec.Struct, frozen=True, tag="get_inventory"):
    """What do you hold? Answered by an ``Inventory``."""

    urgent: bool
    """A generation has ended, and the next one cannot begin without the answer."""


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

    lane: Count
    data_bytes: Count


class WaitRestored(msgspec.Struct, frozen=True, tag="wait_restored"):
    """Answer once the bytes that this generation starts from are in place."""

    generation: Number


class Captured(msgspec.Struct, frozen=True, tag="captured"):
    """More chunks of a lane that is being captured are published. Not answered."""

    lane: Count
    snapshot: SnapshotId


class Sealed(msgspec.Struct, frozen=True, tag="sealed"):
    """A lane of this node is complete. Not answered."""

    lane: Count
    snapshot: SnapshotId


class Skip(msgspec.Struct, frozen=True, tag="skip"):
    """A rank of this node could not capture this snapshot: the job must give it up. Not answered."""

    snapshot: SnapshotId


class Skipped(msgspec.Struct, frozen=True, tag="skipped"):
    """The gate was closed when this version was due. Not answered."""

    version: Number


class Verify(msgspec.Struct, frozen=True, tag="verify"):
    """Read all that is stored here, and repair what is wrong. Answered by a ``VerifyReport``, when it is done."""


class Pin(msgspec.Struct, frozen=True, tag="pin"):
    """Keep this version, or the first safe one after it, for storage, whether it is due or not."""

    version: Number


class Unpin(msgspec.Struct, frozen=True, tag="unpin"):
    """This snapshot is on storage, or will not be: its slot may be used again."""

    snapshot: SnapshotId


class GetUnits(msgspec.Struct, frozen=True, tag="get_units"):
    """What does this snapshot consist of? Answered by ``Units``."""

    snapshot: SnapshotId


Range = tuple[Count, Count]
"""Bytes of a unit: the first, and one past the last."""


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Bytes of any unit of a complete snapshot, wherever it is. Answered by ``Bytes``.

    Several may be under way on one connection; they are answered in any order.
    """

    snapshot: SnapshotId
    position: Count
    lane: Count
    ranges: Annotated[tuple[Range, ...], msgspec.Meta(max_length=RANGES_MAX)]
    number: Count = 0
    """Comes back with the answer."""


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Measure the links to these nodes (probe.py). Answered by ``Probed``."""

    node: Name
    """This node's name: the others note whose probe they heard."""
    peers: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=DESTINATIONS_MAX)]
    """Any nodes of the job, in a generation or not; their positions come back in the figures."""
    count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    """Round trips to each."""
    burst_bytes: Annotated[int, msgspec.Meta(ge=0, le=16 << 20)] = 0
    """What to send to each for its bandwidth; 0: nothing."""
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=30)] = 1.0
    """For all round trips together, and for the bursts to each."""
    bursts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    """So many to each, of which the best counts: a busy processor makes one slow, and never fast."""


Request = (
    ClientHello
    | Configure
    | GetInventory
    | GetStatus
    | Shutdown
    | Reserve
    | WaitRestored
    | Captured
    | Sealed
    | Skip
    | Skipped
    | Verify
    | Pin
    | Unpin
    | GetUnits
    | Read
    | Probe
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


class LaneReport(msgspec.Struct, frozen=True):
    """What a check found in one lane of one snapshot: its data, and the parity kept here of its like."""

    snapshot: SnapshotId
    position: int
    lane: int
    checked: int
    """Chunks that were read."""
    damaged: int
    """Of these, how many did not have their checksum."""
    repaired: int
    """Of the damaged ones, how many are right again."""
    damage: Damages = ()
    """Where they were."""


class VerifyReport(msgspec.Struct, frozen=True, tag="verified"):
    """Answer to Verify."""

    lanes: tuple[LaneReport, ...]


class UnitInfo(msgspec.Struct, frozen=True):
    """One lane's unit of a snapshot: data, padding, and the worker's manifest; offsets in bytes."""

    position: Count
    lane: Count
    rank: Rank
    world_size: Rank
    data_bytes: Count
    manifest_offset: Count
    manifest_bytes: Count
    unit_bytes: Count


class Units(msgspec.Struct, frozen=True, tag="units"):
    """Answer to GetUnits, in order of position and lane."""

    units: tuple[UnitInfo, ...]


class Bytes(msgspec.Struct, frozen=True, tag="bytes"):
    """Answer to Read: the bytes of all its ranges, verified, follow behind this frame."""

    number: Count
    length: Count


class LinkFigure(msgspec.Struct, frozen=True, array_like=True):
    """The link from this node to another, as it was just now."""

    destination: Count
    """Position, as in the request."""
    rtt_seconds: float | None = None
    """The median of the round trips; with what both daemons do beside it, a busy machine adds milliseconds."""
    least_rtt_seconds: float | None = None
    """The shortest of them: near to what the network needs, also where processors are busy."""
    bytes_per_second: float | None = None
    """Of the best burst, until its last echo; None: there was none, or nothing got through."""
    failure: str = ""
    """Why the destination did not answer; empty: it did."""
    heard: bool = False
    """Whether a beacon of the destination came in here meanwhile: it sends some while it measures its own links. If so,
    and ``failure`` says that nothing was answered, the link is cut from here to there."""
    sent_segments: Count = 0
    """What TCP sent to the destination for this figure; 0: the kernel does not tell."""
    lost_segments: Count = 0
    """Of these, what got lost on the way there (tcp_counts.py)."""


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """Answer to Probe, in the order of the request."""

    figures: Annotated[tuple[LinkFigure, ...], msgspec.Meta(max_length=DESTINATIONS_MAX)]


Reply = Done | InventoryReply | StatusReply | TooSmall | Incomplete | Refused | VerifyReport | Units | Bytes | Probed
