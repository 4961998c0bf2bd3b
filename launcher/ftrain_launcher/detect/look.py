"""Pure: the newest reports to the graph of who waits for whom (`waits`).

Who is waited for and waits for nobody is a *root*: the graph's sinks, where the fault is. An operation that all members
have entered and not all have left is *stuck* or just under way; who is held in it is no root, unless only what it does
beside its training is (`beside`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from itertools import pairwise

from ftrain_launcher.detect.beside import is_missed
from ftrain_launcher.detect.records import Channel, Communicator, Op, Operation
from ftrain_launcher.detect.timeouts import FIRST_SECONDS
from ftrain_launcher.detect.waits import Gate, Graph, Group, Key, Standing, Transfer, key_of

COMMITTER = 0
"""The rank that all others wait for at the end of a step."""
_WAITERS_MAX = 8
"""So many of those who wait for rank 0 are said to wait for others, too."""
_STEPS = Communicator("steps", (), "default_pg")


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
    commits: dict[int, Gate] = {}
    for rank, standing in standings.items():
        if standing.record.commit is not None and rank not in stale:
            _add_commit(graph, commits, rank, standing.record.commit)
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


def _add_commit(graph: Graph, commits: dict[int, Gate], rank: int, operation: Operation) -> None:
    if COMMITTER not in graph.standings:
        graph.unknown.add(COMMITTER)
    gate = commits.get(operation.seq)
    if gate is None:
        gate = commits[operation.seq] = Gate(_STEPS, operation.seq, peer=COMMITTER)
        graph.gates.append(gate)
    gate.waiters.append((rank, operation))
    graph.waiting.setdefault(rank, []).append(gate)


def _met(operation: Operation, other: Channel | None) -> int:
    """How many of the operations that answer such a one the peer has entered."""
    if other is None:
        return 0
    return other.sends_entered if operation.op == Op.RECEIVE else other.receives_entered


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
            elif rank not in free or graph.standings[rank].halted or is_missed(graph, rank, gate):
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
            elif gate.peer not in free or graph.standings[gate.peer].halted or is_missed(graph, gate.peer, gate):
                graph.accused.setdefault(gate.peer, []).append(gate)
                gate.roots = 1
    _accuse_with_committer(graph, free)


def _accuse_with_committer(graph: Graph, free: Collection[int]) -> None:
    """Where rank 0 is waited for at the end of a step and waits for nobody, so are others that have not done the step,
    and are in no operation: rank 0 may wait for them, in the store or for a file, which nobody records. If it computes,
    they may wait for it."""
    gates = [gate for gate in graph.accused.get(COMMITTER, ()) if gate.communicator is _STEPS]
    if not gates:
        return
    first = min(gates, key=lambda gate: gate.seq)
    longest = sorted(first.waiters, key=lambda waiter: -waiter[1].age_seconds)[:_WAITERS_MAX]
    is_busy = graph.standings[COMMITTER].computes
    for rank, standing in graph.known():
        record = standing.record
        if rank == COMMITTER or rank in free or record.step >= first.seq or record.ended:
            continue
        if standing.halted or not is_busy:
            gate = Gate(_STEPS, first.seq, longest, peer=rank, roots=1)
            graph.gates.append(gate)
            graph.accused.setdefault(rank, []).append(gate)
