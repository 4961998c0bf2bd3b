"""What daemons say to each other, once each has proved that it knows the job's secret (transport.py).

Everything belongs to one generation: a connection is opened for it, and closed with it, so no message carries it
along for fencing; snapshots carry their own.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.inventory import Damages, Holdings
from ftrain_snapshot.manifest import UnitDescriptor, Word
from ftrain_snapshot.messages import UnitInfo
from ftrain_snapshot.rebuild_plan import Source
from ftrain_snapshot.words import Count, Name, Number, Reason, SnapshotId

Attempt = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""The number of a question; negative ones are of fetch.py."""
SKIPPED_MAX = 16
SHARES_MAX = 256
"""Members of a group: elements of GF(256)."""
UNITS_MAX = 4096
"""A group's units: its nodes times their lanes."""


class PeerHello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First, by who dialled: who I am, in which generation, and for whom I take you."""

    generation: Number
    position: Count
    node: Name
    to_position: Count


class PeerWelcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The answer to PeerHello, once the other side serves that generation, too."""

    generation: Number


class OriginHello(msgspec.Struct, frozen=True, array_like=True, tag="origin_hello"):
    """First, by who dialled, instead of PeerHello: I want to read what this generation starts from (old_world.py).

    Positions are those of the world that captured it. Answered by PeerWelcome, and then by what is there.
    """

    generation: Number
    """The one that is served by both; it fences, as with PeerHello."""
    node: Name
    snapshot: SnapshotId
    to_position: Count


class Announce(msgspec.Struct, frozen=True, array_like=True, tag="announce"):
    """To the gate, when connected and whenever ``linked`` changes."""

    holdings: Holdings
    linked: bool
    """Connected to all others of the group."""
    skipped: Annotated[tuple[SnapshotId, ...], msgspec.Meta(max_length=SKIPPED_MAX)]
    """Snapshots that a rank here could not capture: the gate may have missed it."""
    kept: Annotated[tuple[SnapshotId, ...], msgspec.Meta(max_length=SKIPPED_MAX)] = ()
    """Snapshots of other worlds that this node was not told to let go."""


class PositionSealed(msgspec.Struct, frozen=True, array_like=True, tag="sealed"):
    """To the gate: all lanes here are sealed."""

    snapshot: SnapshotId
    digests: Annotated[tuple[Word, ...], msgspec.Meta(max_length=ControlPage.LANES_MAX)]


class PositionStored(msgspec.Struct, frozen=True, array_like=True, tag="stored"):
    """To the gate: the parity that this position keeps is complete and verified."""

    snapshot: SnapshotId


class Abandon(msgspec.Struct, frozen=True, array_like=True, tag="abandon"):
    """To the gate: this snapshot cannot be protected."""

    snapshot: SnapshotId
    reason: Reason


class SkipNotice(msgspec.Struct, frozen=True, array_like=True, tag="skip"):
    """To the gate: a rank here could not capture this snapshot."""

    snapshot: SnapshotId


class Drop(msgspec.Struct, frozen=True, array_like=True, tag="drop"):
    """From the gate: nobody may restore this snapshot."""

    snapshot: SnapshotId


class LetGo(msgspec.Struct, frozen=True, array_like=True, tag="let_go"):
    """From the gate: a snapshot of this world is safe, so this one of another world is not needed any more."""

    snapshot: SnapshotId


class Describe(msgspec.Struct, frozen=True, array_like=True, tag="describe"):
    """To the group: lengths and checksums of a unit of mine. Kept by all, beside the bytes."""

    unit: UnitDescriptor


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag="chunk"):
    """The sender's part of one stripe, data or parity; the bytes follow."""

    snapshot: SnapshotId
    lane: Count
    rotation: Count
    stripe: Count
    checksum: Word
    """0 for a sum of parts: its asker proves what it makes of it."""
    attempt: Attempt
    """Which fetch it answers; 0: nobody asked, it is to be protected."""


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag="fetch"):
    """Send me your part, data or parity, of these stripes."""

    snapshot: SnapshotId
    lane: Count
    rotation: Count
    first: Count
    stop: Count
    """One past the last stripe."""
    attempt: Attempt
    urgent: bool = True
    """Somebody cannot go on without them; else they queue with what is being protected."""
    shares: Annotated[tuple[Source, ...], msgspec.Meta(max_length=SHARES_MAX)] = ()
    """Not your part alone, but the sum of these members' parts, yours the first (relay.py)."""


class FetchFailed(msgspec.Struct, frozen=True, array_like=True, tag="fetch_failed"):
    """I do not have it (any more)."""

    attempt: Attempt
    reason: Reason


class Restoring(msgspec.Struct, frozen=True, array_like=True, tag="restoring"):
    """To the group, or to who reads an origin: what I have of the snapshot that this generation starts from; or that
    all of another one is back."""

    snapshot: SnapshotId
    bad: Damages
    units: Annotated[tuple[UnitDescriptor, ...], msgspec.Meta(max_length=UNITS_MAX)]
    """Descriptors known here: a spare learns from them what its own bytes must be."""
    more: bool = False
    """They do not all fit: others follow."""


class Mismatch(msgspec.Struct, frozen=True, array_like=True, tag="mismatch"):
    """To the sender of a chunk: its bytes arrived here with another checksum. Look at yours."""

    snapshot: SnapshotId
    lane: Count
    rotation: Count
    stripe: Count
    attempt: Attempt
    """As in the chunk."""
    refuted: bool = False
    """They are as on record, and what is made of them is wrong all the same: they are not the parity of the data."""


class FarRead(msgspec.Struct, frozen=True, array_like=True, tag="far_read"):
    """To another group, or to the gate, which passes it on: bytes of a unit. Lane -1: the group's units."""

    snapshot: SnapshotId
    position: Count
    lane: Number
    start: Count
    stop: Count
    attempt: Attempt


class FarAnswer(msgspec.Struct, frozen=True, array_like=True, tag="far_answer"):
    """Answer to FarRead; bytes follow, if it was bytes."""

    attempt: Attempt
    units: Annotated[tuple[UnitInfo, ...], msgspec.Meta(max_length=UNITS_MAX)]
    checksum: Word
    """Of the bytes."""


class FarFailed(msgspec.Struct, frozen=True, array_like=True, tag="far_failed"):
    """Answer to FarRead: they cannot be had."""

    attempt: Attempt
    reason: Reason


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """First, and again and again, on a connection that carries nothing else (probe.py): answer with an Echo at once.

    Bytes may follow, which nobody reads.
    """

    number: Count


class Echo(msgspec.Struct, frozen=True, array_like=True, tag="echo"):
    """Answer to Ping, once all its bytes are here."""

    number: Count


ToGate = Announce | PositionSealed | PositionStored | Abandon | SkipNotice
"""What daemons tell the gate."""
PeerMessage = (
    PeerHello
    | PeerWelcome
    | OriginHello
    | Announce
    | PositionSealed
    | PositionStored
    | Abandon
    | SkipNotice
    | Drop
    | LetGo
    | Describe
    | Chunk
    | Fetch
    | FetchFailed
    | Restoring
    | Mismatch
    | FarRead
    | FarAnswer
    | FarFailed
    | Ping
    | Echo
)
