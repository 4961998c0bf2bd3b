"""Pure: a job's trace in Chrome's trace event format, which Perfetto and chrome://tracing open.

A rank is a process of the trace; its rows are its steps, and one row for each communicator, two where it sends and
receives too. Perfetto wants the slices of a row to be nested, and operations that are under way together (DDP's
buckets) are not: those that overlap go into further rows. Format: "Trace Event Format", docs.google.com/document/d/
1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from ftrain_launcher.detect import wording
from ftrain_launcher.detect.records import Op
from ftrain_launcher.trace.records import JobTrace, NodeTrace, NodeTraced, RankTrace, TraceRecord

_STEPS_ROW = 1
_POINT_TO_POINT = frozenset({Op.SEND, Op.RECEIVE, Op.RECEIVE_ANY})
_OP_NAMES = {int(op): op.name.lower() for op in Op}


class Slice(msgspec.Struct, frozen=True, tag_field="ph", tag="X", kw_only=True):
    """A complete event: it has begun and ended."""

    name: str
    cat: str
    ts: float
    """Microseconds since the trace's first event."""
    dur: float
    pid: int
    tid: int
    args: dict[str, Any]


class Label(msgspec.Struct, frozen=True, tag_field="ph", tag="M", kw_only=True):
    """A metadata event: what a process or a row is called, and where it is shown."""

    name: str
    pid: int
    tid: int = 0
    args: dict[str, Any]


def events(trace: JobTrace) -> Iterator[Label | Slice]:
    """All events: the labels first, then the slices by the time at which they begin."""
    origin = origin_ns(trace)
    slices: list[Slice] = []
    for node, part in _parts(trace):
        for rank in part.ranks:
            labels, found = _Process(node, part, rank, origin).events()
            yield from labels
            slices += found
    slices.sort(key=lambda event: (event.ts, -event.dur))
    yield from slices


def origin_ns(trace: JobTrace) -> int:
    """Unix time of the trace's first event; 0: it has none."""
    moments = [
        time_ns + node.offset_ns
        for node, part in _parts(trace)
        for rank in part.ranks
        for time_ns in (*(record.entered_ns for record in rank.records), *(mark.time_ns for mark in rank.marks))
    ]
    return min(moments, default=0)


def missing(trace: JobTrace) -> list[str]:
    """For people: which nodes and ranks are not in the trace, and why."""
    lines = [f"{node.node} is missing: {node.failure}" for node in trace.nodes if node.failure]
    for node, part in _parts(trace):
        if part.unrecorded:
            lines.append(f"{wording.name_ranks(part.unrecorded)} of {node.node}: the ring is missing or cannot be read")
    return lines


def _parts(trace: JobTrace) -> Iterator[tuple[NodeTraced, NodeTrace]]:
    """The nodes that sent something, and what."""
    return ((node, node.trace) for node in trace.nodes if node.trace is not None)


class _Process:
    """One rank's events."""

    def __init__(self, node: NodeTraced, part: NodeTrace, rank: RankTrace, origin: int) -> None:
        self._node, self._part, self._rank = node.node, part, rank
        self._shift_ns = node.offset_ns - origin
        self._pid = rank.rank + 1  # 0 is the idle process to Perfetto

    def events(self) -> tuple[list[Label], list[Slice]]:
        """Labels and slices."""
        slices = self._steps()
        by_row: dict[tuple[int, bool], list[TraceRecord]] = {}
        for record in self._rank.records:
            by_row.setdefault((record.communicator, record.op in _POINT_TO_POINT), []).append(record)
        rows = ["steps"]
        for (communicator, is_point_to_point), records in sorted(by_row.items()):
            group = self._part.communicators[communicator]
            members = wording.name_ranks(group.members) if group.members else "unknown ranks"
            where = {"communicator": group.name, "description": group.description, "members": members}
            name = f"{wording.label(group.name, group.description)} ({members})"
            name += ": point to point" if is_point_to_point else ""
            for lane, of_lane in enumerate(self._lanes(records), start=1):
                rows.append(name if lane == 1 else f"{name} ({lane})")
                slices += [self._operation(record, where, len(rows)) for record in of_lane]
        return self._labels(rows), slices

    def _labels(self, rows: list[str]) -> list[Label]:
        labels = [
            Label(name="process_name", pid=self._pid, args={"name": f"rank {self._rank.rank} ({self._node})"}),
            Label(name="process_sort_index", pid=self._pid, args={"sort_index": self._rank.rank}),
        ]
        for tid, name in enumerate(rows, start=_STEPS_ROW):
            labels.append(Label(name="thread_name", pid=self._pid, tid=tid, args={"name": name}))
            labels.append(Label(name="thread_sort_index", pid=self._pid, tid=tid, args={"sort_index": tid}))
        return labels

    def _steps(self) -> list[Slice]:
        """A step is from the mark before to its own; the one that is under way ends now.

        A nanosecond lies between two steps: readers round, and what then overlaps is dropped.
        """
        marks = self._rank.marks
        slices = [self._step(mark.step, before.time_ns, mark.time_ns - 1, {}) for before, mark in pairwise(marks)]
        if marks:
            slices.append(self._step(marks[-1].step + 1, marks[-1].time_ns, self._now_ns, {"pending": True}))
        return slices

    def _step(self, step: int, began_ns: int, ended_ns: int, more: dict[str, Any]) -> Slice:
        args = {"step": step, **more}
        return self._slice(f"step {step}", "step", began_ns, ended_ns, _STEPS_ROW, args)

    def _lanes(self, records: list[TraceRecord]) -> list[list[TraceRecord]]:
        """The records of one row in as few rows as they need not to overlap."""
        lanes: list[list[TraceRecord]] = []
        for record in sorted(records, key=lambda r: r.entered_ns):
            free = (lane for lane in lanes if (lane[-1].left_ns or self._now_ns) <= record.entered_ns)
            lane = next(free, None)
            if lane is None:
                lanes.append([record])
            else:
                lane.append(record)
        return lanes

    def _operation(self, record: TraceRecord, where: dict[str, Any], tid: int) -> Slice:
        name = _OP_NAMES.get(record.op, f"operation {record.op}")
        args = {"op": name, "seq": record.seq, "bytes": record.bytes, **where}
        if record.root >= 0:
            args["peer" if record.op in _POINT_TO_POINT else "root"] = record.root
        if record.failed:
            args["failed"] = True
        if not record.left_ns:
            args["pending"] = True
        return self._slice(name, "communication", record.entered_ns, record.left_ns or self._now_ns, tid, args)

    @property
    def _now_ns(self) -> int:
        return self._part.read_ns

    def _slice(self, name: str, cat: str, began_ns: int, ended_ns: int, tid: int, args: dict[str, Any]) -> Slice:
        """Nanoseconds stay whole until here: rounded apart, neighbours would overlap."""
        ts, dur = (began_ns + self._shift_ns) / 1e3, max(0, ended_ns - began_ns) / 1e3
        return Slice(name=name, cat=cat, ts=ts, dur=dur, pid=self._pid, tid=tid, args=args)
