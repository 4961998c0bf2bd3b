"""Pure: who waits for whom, over all communicators and channels, from the newest reports.

An operation that some members have entered and others have not is a *gate*: who entered it waits at it for those who
lack. Members of a communicator are sorted by how far they are, so that who lacks at a gate is the beginning of a list,
and nothing here grows with the square of a communicator's size.

`look` makes it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ftrain_launcher.detect.records import (
    Collectives,
    Communicator,
    Op,
    Operation,
    ProcessState,
    RankRecord,
    pending_operations,
)
from ftrain_launcher.detect.timeouts import COMPUTING_SHARE

Key = tuple[str, int, int]
"""A communicator's name, first member and size. Groups that share a name are disjoint: their first members differ, and
tens of thousands of members need not be hashed with each report."""

LEFT_WHEN_WAITED = frozenset((Op.REDUCE_SCATTER, Op.REDUCE_SCATTER_SINGLE, Op.REDUCE_SCATTER_SINGLE_COALESCED))
"""Gloo gives these no future: a rank leaves them when it waits for the result, however long ago they ended."""
GONE = frozenset(("Z", "X", "x", ""))
STOPPED = "T"
PAUSE_SECONDS_MAX = 0.3
"""Seen to be stopped for so long, without using a processor, a process is not merely paused: a profiler's look takes
milliseconds, and who limits its use of processors lets it go on ten times a second. One that is traced ("t") tells no
more than that somebody looks at it."""
SAMPLE = 64
"""So many of an operation's waiters are asked for what holds for all."""
BUSY_SHARE = 0.3
"""Of a core: who uses less is blocked or sleeps."""


def key_of(communicator: Communicator) -> Key:
    """What tells a communicator from all others of its generation."""
    return communicator.name, communicator.members[0] if communicator.members else -1, len(communicator.members)


@dataclass(slots=True)
class Standing:
    """The newest that is known of one rank."""

    record: RankRecord
    communicators: tuple[Communicator, ...]
    node: str
    taken: float
    """When its report came."""
    idle_seconds: float
    """How long it had entered nothing, as of its report."""
    recent: dict[int, tuple[Operation, ...]] = field(default_factory=dict)
    """By communicator of the report, its recent operations, when they were last told."""
    stalls: tuple[tuple[float, float], ...] = ()
    """Its newest long times outside of all operations: until when, and how many seconds."""
    earlier: Standing | None = None
    """What was known some tenths of a second before; it has no ``earlier`` itself."""
    cpu_seconds_then: float | None = None
    """What its process had used of processors when it was last seen to move."""
    stopped_since: float | None = None
    """When its process was first seen to be stopped; None: it is not, or has gone on since."""

    @property
    def halted(self) -> bool:
        """Its process is stopped, and not for a moment only, or gone."""
        return self.gone or (self.stopped_since is not None and self.taken - self.stopped_since >= PAUSE_SECONDS_MAX)

    @property
    def stands(self) -> bool:
        """As `halted`, if only for a moment."""
        return self.gone or self.stopped_since is not None

    @property
    def gone(self) -> bool:
        """Its process is gone, or about to be."""
        process = self.record.process
        return process is not None and process.letter in GONE

    def stalled(self, since: float) -> float:
        """The longest of its stalls that lasted into the time since a moment, in seconds."""
        return max((seconds for until, seconds in self.stalls if until > since), default=0.0)

    @property
    def busy(self) -> bool:
        """Its main thread runs, so it is not blocked in an operation, whatever it has pending."""
        process = self.record.process
        before = self.earlier.record.process if self.earlier is not None else None
        if process is None or before is None or self.earlier is None:
            return _runs(process)
        used = (process.cpu_seconds - before.cpu_seconds) / max(self.taken - self.earlier.taken, 1e-3)
        return used >= BUSY_SHARE and _runs(process)

    @property
    def computes(self) -> bool:
        """Its process has used a processor since it last entered or left an operation."""
        process = self.record.process
        if process is None or self.cpu_seconds_then is None:
            return False
        return process.cpu_seconds - self.cpu_seconds_then >= COMPUTING_SHARE * self.idle_seconds


def _runs(process: ProcessState | None) -> bool:
    return process is not None and (process.main_thread or process.letter) == "R"


@dataclass(slots=True, eq=False)
class Gate:
    """An operation that some ranks have entered and others have not."""

    communicator: Communicator
    seq: int
    waiters: list[tuple[int, Operation]] = field(default_factory=list)
    group: Group | None = None
    peer: int = -1
    """The one rank it waits for, without a group."""
    unknown: bool = False
    """Nothing is known of some of those who may lack."""
    roots: int = 0
    """How many of those who lack wait for nobody."""

    def sample(self) -> list[tuple[int, Operation]]:
        """Some of those who wait at it, who show what is usual for it."""
        return self.waiters[:: max(1, len(self.waiters) // SAMPLE)]

    def lacking(self) -> list[int]:
        """The ranks that have not entered it, those furthest behind first."""
        return [self.peer] if self.group is None else self.group.behind(self.seq)


@dataclass(slots=True, eq=False)
class Group:
    """One communicator, and how far its members are."""

    communicator: Communicator
    at: dict[int, Collectives] = field(default_factory=dict)
    recent: dict[int, tuple[Operation, ...]] = field(default_factory=dict)
    """What is known of operations that ranks have entered before."""
    order: list[int] = field(default_factory=list)
    """Its members, those furthest behind first."""
    entered: list[int] = field(default_factory=list)
    """How many collectives each of ``order`` has entered; of a rank of which nothing new is known, at least."""
    gates: dict[int, Gate] = field(default_factory=dict)
    under_way: dict[int, list[tuple[int, Operation]]] = field(default_factory=dict)
    """By number: operations that all have entered, and who is still in them."""

    @property
    def members(self) -> tuple[int, ...]:
        """Global ranks."""
        return self.communicator.members

    def sort(self) -> None:
        """Bring the members in order, once all are known."""
        far = {rank: 0 if (place := self.at.get(rank)) is None else place.entered for rank in self.members}
        self.order = sorted(self.members, key=far.__getitem__)
        self.entered = [far[rank] for rank in self.order]

    def operations(self) -> Iterator[tuple[int, Operation]]:
        """All that is known of what its members entered; an operation may come more than once."""
        for rank, at in self.at.items():
            for operation in (*self.recent.get(rank, ()), *at.pending):
                yield rank, operation
            if at.last is not None:
                yield rank, at.last

    def behind(self, seq: int) -> list[int]:
        """The members that have not entered a collective."""
        return self.order[: bisect_left(self.entered, seq)]

    def holds(self, seq: int) -> bool:
        """Whether those in an operation that all have entered are held by it.

        Not if it may have ended and was merely not waited for: somebody has left it, or went on to what others lack.
        """
        waiters = self.under_way[seq]
        if waiters[0][1].op not in LEFT_WHEN_WAITED:
            return True
        return len(waiters) == len(self.members) and self.entered[0] == self.entered[-1]


@dataclass(slots=True, eq=False)
class Transfer:
    """A point-to-point operation whose other side has been entered as well, and that goes on."""

    rank: int
    peer: int
    communicator: Communicator
    operation: Operation


@dataclass(slots=True)
class Graph:
    """Who waits for whom."""

    standings: Mapping[int, Standing]
    unknown: set[int]
    """Ranks of which nothing is known, or nothing new."""
    groups: dict[Key, Group] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    waiting: dict[int, list[Gate]] = field(default_factory=dict)
    """By rank, the gates at which it waits."""
    held: set[int] = field(default_factory=set)
    """Ranks in an operation that all have entered, or that are ending their step."""
    accused: dict[int, list[Gate]] = field(default_factory=dict)
    """The roots, each with the gates at which others wait for it."""

    def known(self) -> Iterator[tuple[int, Standing]]:
        """The ranks of which something new is known."""
        return ((rank, standing) for rank, standing in self.standings.items() if rank not in self.unknown)


def has_called(standing: Standing, gate: Gate) -> bool:
    """Whether a rank that has not entered a gate's operation has called it: its device has not reached it."""
    if gate.group is not None:
        place = gate.group.at.get(standing.record.rank)
        return place is not None and place.queued > 0 and place.entered + place.queued >= gate.seq
    waiter, operation = gate.waiters[0]
    receives = operation.op == Op.RECEIVE
    for channel in standing.record.channels:
        if channel.peer == waiter and key_of(standing.communicators[channel.communicator]) == key_of(gate.communicator):
            entered, queued = (
                (channel.sends_entered, channel.sends_queued)
                if receives
                else (channel.receives_entered, channel.receives_queued)
            )
            return queued > 0 and entered + queued >= gate.seq
    return False


def pending_of(record: RankRecord) -> list[Operation]:
    """All that a rank has entered and not left, and its wait at the end of a step."""
    pending = pending_operations(record)
    return pending if record.commit is None else [*pending, record.commit]


def recent_of(record: RankRecord) -> dict[int, tuple[Operation, ...]]:
    """The recent operations that a report tells, by communicator."""
    return {place.communicator: place.recent for place in record.collectives if place.recent}
