"""Pure: who waits for whom, over all communicators and channels, from the newest reports.

An operation that some members have entered and others have not is a *gate*: who entered it waits at it for those who
lack. Members of a communicator are sorted by how far they are, so that who lacks at a gate is the beginning of a list,
and nothing here grows with the square of a communicator's size.

Who is waited for and waits for nobody is a *root*: the graph's sinks, where the fault is. An operation that all members
have entered and not all have left is *stuck* or just under way; who is held in it is no root.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from ftrain_launcher.detect.records import Channel, Collectives, Communicator, Op, Operation, ProcessState, RankRecord
from ftrain_launcher.detect.timeouts import COMPUTING_SHARE, FIRST_SECONDS

Key = tuple[str, int, int]
"""A communicator's name, first member and size. Groups that share a name are disjoint: their first members differ, and
tens of thousands of members need not be hashed with each report."""

LEFT_WHEN_WAITED = frozenset((Op.REDUCE_SCATTER, Op.REDUCE_SCATTER_SINGLE, Op.REDUCE_SCATTER_SINGLE_COALESCED))
"""Gloo gives these no future: a rank leaves them when it waits for the result, however long ago they ended."""
HALTED = frozenset(("T", "t", "Z", "X", "x", ""))
COMMITTER = 0
"""The rank that all others wait for at the end of a step."""
_STEPS = Communicator("steps", (), "default_pg")
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

    @property
    def halted(self) -> bool:
        """Its process is stopped or gone."""
        process = self.record.process
        return process is not None and process.letter in HALTED

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


def look(standings: Mapping[int, Standing], stale: set[int]) -> Graph:
    """Build the graph; of ranks in ``stale`` only what they had entered still holds."""
    graph = Graph(standings, set(stale))
    channels: dict[tuple[Key, int, int], Channel] = {}
    for rank, standing in standings.items():
        keys = [key_of(communicator) for communicator in standing.communicators]
        for place in standing.record.collectives:
            key = keys[place.communicator]
            group = graph.groups.get(key)
            if group is None:
                group = graph.groups[key] = Group(standing.communicators[place.communicator])
            group.at[rank] = place
            if standing.recent:
                group.recent[rank] = standing.recent.get(place.communicator, ())
        for channel in standing.record.channels:
            channels[keys[channel.communicator], rank, channel.peer] = channel
    for group in graph.groups.values():
        _add_group(graph, group)
    for rank, standing in standings.items():
        if standing.record.commit is not None and rank not in stale:
            _add_commit(graph, rank, standing.record.commit)
        if standing.record.holds_seconds is not None and standing.record.holds_seconds < FIRST_SECONDS:
            graph.held.add(rank)
    for (key, rank, _), channel in channels.items():
        if channel.pending and rank not in stale:
            _add_channel(graph, standings[rank], rank, channel, channels.get((key, channel.peer, rank)))
    _accuse(graph)
    return graph


def _add_group(graph: Graph, group: Group) -> None:
    pending = [(rank, at.pending) for rank, at in group.at.items() if at.pending and rank not in graph.unknown]
    if not pending:
        return
    graph.unknown.update(rank for rank in group.members if rank not in graph.standings)
    group.sort()
    for rank, operations in pending:
        for operation in operations:
            if operation.seq <= group.entered[0]:
                group.under_way.setdefault(operation.seq, []).append((rank, operation))
                continue
            gate = group.gates.get(operation.seq)
            if gate is None:
                gate = group.gates[operation.seq] = Gate(group.communicator, operation.seq, group=group)
                graph.gates.append(gate)
            gate.waiters.append((rank, operation))
            graph.waiting.setdefault(rank, []).append(gate)
            break
    for seq, waiters in group.under_way.items():
        if group.holds(seq):
            graph.held.update(rank for rank, _ in waiters)


def _add_channel(graph: Graph, standing: Standing, rank: int, channel: Channel, other: Channel | None) -> None:
    communicator = standing.communicators[channel.communicator]
    for operation in channel.pending:
        if operation.op == Op.RECEIVE_ANY:
            graph.held.add(rank)  # any member can end it: it accuses nobody
            continue
        if _met(operation, other) < operation.seq:
            if channel.peer not in graph.standings:
                graph.unknown.add(channel.peer)
            gate = Gate(communicator, operation.seq, [(rank, operation)], peer=channel.peer)
            graph.gates.append(gate)
            graph.waiting.setdefault(rank, []).append(gate)
        elif operation.op == Op.RECEIVE:
            # What was sent has not come, or it was not waited for; who computes is not held by it.
            graph.transfers.append(Transfer(rank, channel.peer, communicator, operation))
            if not standing.busy:
                graph.held.add(rank)


def _add_commit(graph: Graph, rank: int, operation: Operation) -> None:
    if COMMITTER not in graph.standings:
        graph.unknown.add(COMMITTER)
    gate = Gate(_STEPS, operation.seq, [(rank, operation)], peer=COMMITTER)
    graph.gates.append(gate)
    graph.waiting.setdefault(rank, []).append(gate)


def _met(operation: Operation, other: Channel | None) -> int:
    """How many of the operations that answer such a one the peer has entered."""
    if other is None:
        return 0
    return other.sends_entered if operation.op == Op.RECEIVE else other.receives_entered


def pending_of(record: RankRecord) -> list[Operation]:
    """All that a rank has entered and not left."""
    pending = [operation for place in record.collectives for operation in place.pending]
    for channel in record.channels:
        pending += channel.pending
    return pending if record.commit is None else [*pending, record.commit]


def is_beside(graph: Graph, rank: int, gate: Gate) -> bool:
    """Whether all that is pending of a rank that lacks at a gate was entered by other threads than come there.

    Those are free to come: what is waited for beside them, a checkpoint that is written, is no waiting of the rank.
    """
    if gate.group is None or rank not in gate.group.at:
        return False
    last = gate.group.at[rank].last
    entered = [*gate.group.recent.get(rank, ()), *([last] if last is not None else [])]
    usual = {operation.thread for operation in entered}
    within = {operation.thread for operation in pending_of(graph.standings[rank].record)}
    return bool(usual and within) and 0 not in usual | within and usual.isdisjoint(within)


def recent_of(record: RankRecord) -> dict[int, tuple[Operation, ...]]:
    """The recent operations that a report tells, by communicator."""
    return {place.communicator: place.recent for place in record.collectives if place.recent}


def _accuse(graph: Graph) -> None:
    free = graph.waiting.keys() | graph.held
    for group in graph.groups.values():
        if not group.gates:
            continue
        seqs = sorted(group.gates)
        unknown = seqs[-1]
        for rank, entered in zip(group.order, group.entered, strict=True):
            if entered >= seqs[-1]:
                break
            gate = group.gates[seqs[bisect_right(seqs, entered)]]
            if rank in graph.unknown:
                unknown = min(unknown, entered)
            elif rank not in free or graph.standings[rank].halted:
                graph.accused.setdefault(rank, []).append(gate)
                gate.roots += 1
        for seq, after in pairwise(seqs):
            group.gates[after].roots += group.gates[seq].roots
        for seq in seqs[bisect_right(seqs, unknown) :]:
            group.gates[seq].unknown = True
    for gate in graph.gates:
        if gate.group is None:
            if gate.peer in graph.unknown:
                gate.unknown = True
            elif gate.peer not in free or graph.standings[gate.peer].halted:
                graph.accused.setdefault(gate.peer, []).append(gate)
                gate.roots = 1
