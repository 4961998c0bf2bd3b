"""What a node's agent and workers ask its daemon (client.py), on its unix socket, and what it answers.

Every message is a tagged, bounded msgspec struct: no pickle crosses a socket. One protocol, one file: whoever speaks on
that socket needs both. What daemons say to each other is in wire.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ftrain_snapshot.inventory import Damages, Inventory
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.status import DaemonStatus
from ftrain_snapshot.words import Count, Name, Number, Rank, SnapshotId

DESTINATIONS_MAX = 256
"""Nodes that one request has probed."""
RANGES_MAX = 4096
"""Ranges in one read."""


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
