"""The agent's part in ``ftrain trace``: whole records of the last steps, out of the rings of the node's workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from ftrain.comm.ring import HOLDS, MARKS_MAX, WAITS, RingInvalid, RingReader, exit_ns, is_failed, is_pending, ring_path
from ftrain_launcher.detect.records import Communicator
from ftrain_launcher.from_agent import RankState
from ftrain_launcher.questions import TraceWanted
from ftrain_launcher.rings.reader import communicator_of
from ftrain_launcher.trace.records import (
    RECORDS_PER_NODE_MAX,
    RECORDS_PER_RANK_MAX,
    NodeTrace,
    RankTrace,
    StepMark,
    TraceRecord,
)


def read_rings(folder: Path, generation: int, workers: Iterable[RankState], wish: TraceWanted) -> NodeTrace:
    """What the rings of a node's workers hold of the last steps; takes some milliseconds a rank."""
    running = [worker for worker in workers if worker.pid is not None]
    limit = min(RECORDS_PER_RANK_MAX, wish.records_max, RECORDS_PER_NODE_MAX // max(1, len(running)))
    communicators: dict[Communicator, int] = {}
    ranks, unrecorded = [], []
    for worker in running:
        try:
            ring = RingReader(ring_path(folder, worker.local_rank))
        except (OSError, RingInvalid):
            unrecorded.append(worker.rank)
            continue
        try:
            if ring.identity.generation == generation and ring.identity.rank == worker.rank:
                ranks.append(_read_ring(ring, worker.rank, wish.steps, limit, communicators))
            else:
                unrecorded.append(worker.rank)
        finally:
            ring.close()
    return NodeTrace(
        generation=generation,
        read_ns=time.monotonic_ns(),
        communicators=tuple(communicators),
        ranks=tuple(ranks),
        unrecorded=tuple(unrecorded),
    )


def _read_ring(
    ring: RingReader, rank: int, steps: int, limit: int, communicators: dict[Communicator, int]
) -> RankTrace:
    """One rank's records since the end of the step before the last ``steps``; ``communicators`` takes in new ones."""
    live = ring.live()
    marks = ring.marks(max(0, live.marks - MARKS_MAX), live.marks)
    marks = marks[(marks["step"] != WAITS) & (marks["step"] != HOLDS)][-steps - 1 :]
    after = int(marks["head"][0]) if len(marks) and (len(marks) > steps or live.marks > MARKS_MAX) else 0
    records = ring.records(max(after, live.head - limit), live.head)
    indices = []
    for group in ring.groups(live.communicators):
        communicator = communicator_of(group)
        indices.append(communicators.setdefault(communicator, len(communicators)))
    left = exit_ns(records)
    left[is_pending(records)] = 0
    columns = (records[name].tolist() for name in ("communicator", "op", "seq", "bytes", "enter_ns"))
    rows = zip(*columns, left.tolist(), records["root"].tolist(), is_failed(records).tolist(), strict=True)
    return RankTrace(
        rank,
        tuple(TraceRecord(indices[index], *more) for index, *more in rows if index < len(indices)),
        tuple(
            StepMark(step, time_ns)
            for step, time_ns in zip(*(marks[n].tolist() for n in ("step", "at_ns")), strict=True)
        ),
    )
