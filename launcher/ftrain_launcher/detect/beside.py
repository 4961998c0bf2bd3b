"""Pure: what the threads of a rank do beside its training, a monitor's or a checkpoint's, in groups of their own.

It neither hides that the training hangs nor is a reason to wait for the rank; unless the training may wait for it.
"""

from __future__ import annotations

from ftrain_launcher.detect.records import RankRecord
from ftrain_launcher.detect.waits import Gate, Graph, Key, Standing, key_of, pending_of


def idle_at(graph: Graph, rank: int, gate: Gate) -> float:
    """How long a rank that lacks at a gate has not moved, by its report.

    What its threads beside the training do counts where they come to the gate, or the training may wait for them.
    """
    standing = graph.standings[rank]
    beside = standing.record.beside_idle_seconds
    if beside is None or (_others_went_on(graph, rank, gate) and not _comes_beside(standing, gate)):
        return standing.idle_seconds
    return min(standing.idle_seconds, beside)


def _comes_beside(standing: Standing, gate: Gate) -> bool:
    place = gate.group.at.get(standing.record.rank) if gate.group is not None else None
    return place is not None and place.last is not None and place.last.thread in standing.record.beside


def training_waits(record: RankRecord) -> bool:
    """Whether a rank is in any operation, not counting those beside its training."""
    return any(operation.thread not in record.beside for operation in pending_of(record))


def is_beside(graph: Graph, rank: int, gate: Gate) -> bool:
    """Whether all that is pending of a rank that lacks at a gate was entered by other threads than come there.

    Those are free to come: what is waited for beside them, a checkpoint that is written, is no waiting of the rank.
    """
    within = {operation.thread for operation in pending_of(graph.standings[rank].record)}
    if not within or 0 in within:
        return False
    usual = _who_comes(graph, rank, gate)
    return bool(usual) and 0 not in usual and usual.isdisjoint(within)


def _who_comes(graph: Graph, rank: int, gate: Gate) -> set[int]:
    """The threads of a rank that enter such operations; 0: one that is not known."""
    if gate.group is None:
        standing, (peer, _), key = graph.standings[rank], gate.waiters[0], key_of(gate.communicator)
        channels = [channel for channel in standing.record.channels if channel.peer == peer]
        return {one.thread for one in channels if key_of(standing.communicators[one.communicator]) == key}
    if rank not in gate.group.at:
        return set()
    last = gate.group.at[rank].last
    return {operation.thread for operation in (*gate.group.recent.get(rank, ()), *([last] if last is not None else []))}


def is_missed(graph: Graph, rank: int, gate: Gate) -> bool:
    """Whether a rank that is in some operation is free to come to a gate, and is expected there."""
    ends_step = graph.standings[rank].record.holds_seconds is not None
    return not ends_step and is_beside(graph, rank, gate) and _others_went_on(graph, rank, gate)


def _others_went_on(graph: Graph, rank: int, gate: Gate) -> bool:
    """Whether what a rank that lacks at a gate does beside its training is no reason to lack: the training of one who
    waits there came while its own threads beside were in the same operation, or still at it.

    Where theirs were done before, the rank's training may wait for its own.
    """
    within = _inside_beside(graph.standings[rank])
    for waiter, operation in gate.sample():
        beside = graph.standings[waiter].record.beside_idle_seconds
        if beside is not None and beside < operation.age_seconds:
            return True
        if within and not within.isdisjoint(_inside_beside(graph.standings[waiter])):
            return True
    return False


def _inside_beside(standing: Standing) -> set[tuple[Key, int]]:
    """The collectives that a rank's threads beside its training are in."""
    return {
        (key_of(standing.communicators[place.communicator]), operation.seq)
        for place in standing.record.collectives
        for operation in place.pending
        if operation.thread in standing.record.beside
    }
