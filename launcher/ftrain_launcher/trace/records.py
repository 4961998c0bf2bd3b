"""Whole records of what ranks did, as agents send them when somebody asks for a trace (`ftrain trace`).

Moments are nanoseconds of the monotonic clock of the host where they were taken; the controller knows how far that is
from its own.
"""

from __future__ import annotations

import msgspec

from ftrain_launcher.detect.records import Communicator

RECORDS_PER_RANK_MAX = 4096
RECORDS_PER_NODE_MAX = 200_000
"""At about 40 bytes each, half of the longest message."""
RECORDS_PER_JOB_MAX = 1_000_000
STEPS_MAX = 500
"""A ring keeps the marks of about so many."""


class TraceRecord(msgspec.Struct, frozen=True, array_like=True):
    """One operation of one rank."""

    communicator: int
    """Index among the communicators of the part."""
    op: int
    """An `Op`."""
    seq: int
    bytes: int
    entered_ns: int
    left_ns: int
    """0: it has not."""
    root: int = -1
    """Global rank of the root or peer; -1: none."""
    failed: bool = False


class StepMark(msgspec.Struct, frozen=True, array_like=True):
    """The end of a step."""

    step: int
    time_ns: int


class RankTrace(msgspec.Struct, frozen=True, array_like=True):
    """What the ring of one rank holds of its last steps."""

    rank: int
    records: tuple[TraceRecord, ...]
    marks: tuple[StepMark, ...]


class NodeTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What the rings of one node hold."""

    generation: int
    read_ns: int
    """When they were read: operations that were not left by then are pending."""
    communicators: tuple[Communicator, ...] = ()
    ranks: tuple[RankTrace, ...] = ()
    unrecorded: tuple[int, ...] = ()
    """Ranks that run, and whose ring cannot be read."""


class NodeTraced(msgspec.Struct, frozen=True, kw_only=True):
    """One node's part of a job's trace, on the controller's clock."""

    node: str
    trace: NodeTrace | None = None
    offset_ns: int = 0
    """To be added to its moments: then they are Unix time, as the controller's host tells it."""
    error_ns: int = 0
    """So wrong may ``offset_ns`` be."""
    failure: str = ""
    """Why there is no trace; empty: there is."""


class JobTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller answers."""

    job: str
    nodes: tuple[NodeTraced, ...]
