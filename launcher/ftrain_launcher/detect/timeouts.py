"""Pure: how long an operation may last before somebody is asked why.

From the class's own history, never from one constant: three times the 99th percentile of what operations of this class
took this rank, with a floor that a busy machine's hiccups stay below. A rank's waiting for its peers is part of these
durations, so a job that is uneven by nature has patience by itself.
"""

from __future__ import annotations

from ftrain_launcher.detect.records import Op, Operation

LEAST_SECONDS = 0.5
"""No operation is asked about sooner: schedulers and neighbours take that long now and then."""
USUAL_FACTOR = 3.0
MARGIN_SECONDS = 0.2
"""For the age of what is known: rings are read ten times a second."""
FIRST_SECONDS = 60.0
"""For a class without history: the first steps compile, allocate and connect."""
BARRIER_SECONDS = 60.0
"""At least, for barriers: people make the others wait there while one rank evaluates."""
PEERS_FACTOR, PEERS_MARGIN_SECONDS = 5.0, 0.6
"""Of the 99th percentile, and beyond: where peers were outside before they came for as long as they are in each step, a
rank that is late is given no more for that."""
PEERS_UNUSUAL = 1.1
"""Times what is usual: what exceeds that they were outside for longer than in other steps."""
HALTED_SECONDS = 0.5
"""For a rank whose process is stopped or gone: it needs no comparison."""
DIFFERENT_SECONDS = 1.0
"""For operations of one number that members are in and that differ: with history or without, they will not end."""
STALE_SECONDS = 2.0
"""A node's report that is older says nothing any more."""

COMPUTING_SECONDS = 600.0
"""For rank 0 at the end of a step, if it computes: it may write a checkpoint of its own before the others may go on."""
COMPUTING_SHARE = 0.02
"""Of a processor."""

BARRIERS = frozenset((Op.BARRIER, Op.MONITORED_BARRIER))


def allowed_seconds(operation: Operation) -> float:
    """How long an operation may be pending, in seconds."""
    if operation.usual_seconds is None:
        return FIRST_SECONDS
    allowed = max(LEAST_SECONDS, USUAL_FACTOR * operation.usual_seconds) + MARGIN_SECONDS
    return max(allowed, BARRIER_SECONDS) if operation.op in BARRIERS else allowed
