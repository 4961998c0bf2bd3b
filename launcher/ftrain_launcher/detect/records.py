"""What the detector is given: how far each rank is in each of its communicators, and how its last steps went.

Agents make these from the rings of their workers (`ftrain.comm`) and send them to the controller. Clocks of
different hosts are never compared: a moment is told as its age when the ring was read.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Op(IntEnum):
    """An operation of `torch.distributed`, by its number in the ring."""

    ALL_REDUCE = 1
    ALL_REDUCE_COALESCED = 2
    BROADCAST = 3
    REDUCE = 4
    ALL_GATHER = 5
    ALL_GATHER_SINGLE = 6
    ALL_GATHER_COALESCED = 7
    ALL_GATHER_SINGLE_COALESCED = 8
    GATHER = 9
    SCATTER = 10
    REDUCE_SCATTER = 11
    REDUCE_SCATTER_SINGLE = 12
    REDUCE_SCATTER_SINGLE_COALESCED = 13
    ALL_TO_ALL_SINGLE = 14
    ALL_TO_ALL = 15
    BARRIER = 16
    MONITORED_BARRIER = 17
    SEND = 18
    RECEIVE = 19
    RECEIVE_ANY = 20
    COMMIT = 100
    """No operation of torch, and in no ring: the end of a step, where ranks wait for rank 0's word (`ftrain.slots`)."""


NO_DTYPE = 65535
"""Of an operation that carries nothing."""


class Communicator(msgspec.Struct, frozen=True, array_like=True):
    """A process group. Disjoint groups may share a name; name and members together tell them apart."""

    name: str
    members: tuple[int, ...]
    """Global ranks, in the group's own order."""
    description: str = ""
    """What torch's users may call it, like ``mesh_dp``: torch names groups by numbers. Groups may share it."""


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """One operation that a rank has entered."""

    seq: int
    """Its number among the communicator's collectives, or among the channel's sends or receives; the first is 1."""
    op: int
    """An `Op`."""
    bytes: int
    dtype: int
    """torch's number of the scalar type, or ``NO_DTYPE``."""
    elements: int
    root: int
    """Of a broadcast, reduce, gather or scatter, a global rank; -1: none."""
    age_seconds: float
    """Since it was entered."""
    gap_seconds: float
    """How long the rank had been outside of all operations when it entered this one."""
    usual_seconds: float | None = None
    """The 99th percentile of how long operations of this class (communicator, op, size) took this rank so far; None: it
    has seen too few of them to say."""
    thread: int = 0
    """Which thread of the rank's process has entered it; 0: it is not known."""
    usual_gap_seconds: float | None = None
    """The ``gap_seconds`` that most steps have before one of this class; None: too few of them are known."""


class Collectives(msgspec.Struct, frozen=True, array_like=True):
    """How far a rank is in the collectives of one communicator."""

    communicator: int
    """Index among the communicators of the report."""
    entered: int
    completed: int
    pending: tuple[Operation, ...] = ()
    """Those entered and not left, oldest first, at most ``PENDING_MAX``."""
    last: Operation | None = None
    """The newest that was entered, also if it has completed."""
    recent: tuple[Operation, ...] = ()
    """The newest few, also those that have completed: told once while the rank is in an operation for longer than is
    usual, not again until it moves."""
    queued: int = 0
    """How many more it has called that its device has not reached: it takes no part in them yet."""


class Channel(msgspec.Struct, frozen=True, array_like=True):
    """How far a rank is in the point-to-point operations with one peer of a communicator."""

    communicator: int
    peer: int
    """Global rank."""
    sends_entered: int
    sends_completed: int
    receives_entered: int
    receives_completed: int
    pending: tuple[Operation, ...] = ()
    """Of both directions, oldest first."""
    thread: int = 0
    """Which thread has entered its newest operation; 0: it is not told, since only one enters any."""
    sends_queued: int = 0
    """As `Collectives.queued`."""
    receives_queued: int = 0


class ProcessState(msgspec.Struct, frozen=True, array_like=True):
    """What the kernel says of a worker's process."""

    letter: str
    """R, S, D, T (stopped), t (traced), Z (dead), or empty: it is gone."""
    cpu_seconds: float
    """Processor time of all its threads so far."""
    main_thread: str = ""
    """The letter of its main thread."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """What was called, in a rank's program."""

    communicator: int
    """Index among the communicators of the report; -1: one whose members are unknown."""
    op: int
    root: int
    """Or the peer of a send or receive; -1: none."""
    bytes: int

    @property
    def kind(self) -> tuple[int, int, int]:
        """Without its size, which may change from step to step."""
        return self.communicator, self.op, self.root


class Departure(msgspec.Struct, frozen=True, array_like=True):
    """The place at which a rank's newest step, or the one before, took another course than all that came earlier."""

    called: Call | None
    """None: the step was over."""
    usual: Call | None


class RankRecord(msgspec.Struct, frozen=True, array_like=True):
    """One rank, as its ring shows it."""

    rank: int
    step: int
    """The newest mark of a step; -1: none yet."""
    step_age_seconds: float
    """Since that mark; without one, since the recorder started."""
    collectives: tuple[Collectives, ...] = ()
    channels: tuple[Channel, ...] = ()
    process: ProcessState | None = None
    idle_seconds: float | None = None
    """Since it entered or left any operation, but for what threads ``beside`` its training do; None: not told, or none
    yet."""
    departure: Departure | None = None
    """Told while it is in an operation for longer than is usual, if there is one."""
    commit: Operation | None = None
    """It has done its step, and waits for rank 0 to do it, too."""
    holds_seconds: float | None = None
    """How long it has been ending its step in a way that it noted, without waiting for another rank."""
    ended: bool = False
    """Its process has ended in good order, or is about to."""
    starved_seconds: float = 0.0
    """How long of the time in which it has not moved it may have waited for a processor that others used, or for a
    thread or process of its own which did."""
    beside: tuple[int, ...] = ()
    """Threads other than the main one that enter operations in communicators where nobody else does."""
    beside_idle_seconds: float | None = None
    """Since any thread at all entered or left an operation; None: there are none beside."""


class CollectivesStep(msgspec.Struct, frozen=True, array_like=True):
    """What one step of one rank spent in the collectives of one communicator."""

    communicator: int
    operations: int
    bytes: int
    seconds: float
    """The sum of their durations, from entry to exit."""
    least_seconds: float
    """The shortest of those that carry the most bytes: near to what the network needs, since one member enters last."""


class RankStep(msgspec.Struct, frozen=True, array_like=True):
    """One complete step of one rank, from mark to mark."""

    rank: int
    step: int
    seconds: float
    own_seconds: float
    """Of these, not spent waiting for operations. One that is under way while the rank computes takes none of it."""
    collectives: tuple[CollectivesStep, ...] = ()
    processor_seconds: float = 0.0
    """Of ``own_seconds``, on a processor."""
    starved_seconds: float = 0.0
    """Of the rest, how long it may have waited for a processor that others used: what the kernel has counted from
    report to report, spread over its steps."""
    throttled_seconds: float = 0.0
    """In the same way, how long a quota may have held it back."""
    helpers_starved_seconds: float = 0.0
    """Of what is left of ``own_seconds``, how long it may have waited for a thread or process of its own which waited
    for a processor; told only where it is starved itself."""


class SentSegments(msgspec.Struct, frozen=True, array_like=True):
    """What TCP of a host has sent so far, whoever it was for."""

    sent: int
    again: int
    """Of these, because no answer came in time."""


class NodeReport(msgspec.Struct, frozen=True, tag="comm", kw_only=True):
    """All rings of one node, read once."""

    node: str
    generation: int
    communicators: tuple[Communicator, ...]
    """All that its ranks have used; a report's indices point here."""
    ranks: tuple[RankRecord, ...]
    steps: tuple[RankStep, ...] = ()
    """Those that were completed since the last report."""
    unrecorded: tuple[int, ...] = ()
    """Ranks that run, and whose ring cannot be read: nothing is known of them."""
    stopped: tuple[int, ...] = ()
    """Those among them that have no ring yet, and whose process is stopped."""
    segments: SentSegments | None = None
    """Of its host; None: the kernel does not tell."""


PENDING_MAX = 8


def pending_operations(record: RankRecord) -> list[Operation]:
    """All that a rank has entered and not left."""
    pending = [operation for place in record.collectives for operation in place.pending]
    for channel in record.channels:
        pending += channel.pending
    return pending
