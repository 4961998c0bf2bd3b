"""What Perfetto asks of a trace in Chrome's JSON format, checked."""

from __future__ import annotations

from itertools import pairwise
from numbers import Real
from typing import Any

METADATA = {"process_name": str, "thread_name": str, "process_sort_index": int, "thread_sort_index": int}
OPERATION_ARGS = {"op": str, "seq": int, "bytes": int, "communicator": str, "members": str}


def check_trace(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Assert that a trace is well formed; its slices."""
    assert isinstance(document["traceEvents"], list)
    assert document["displayTimeUnit"] in ("ms", "ns")
    labels = [e for e in document["traceEvents"] if e["ph"] == "M"]
    slices = [e for e in document["traceEvents"] if e["ph"] == "X"]
    assert document["traceEvents"] == labels + slices, "labels first, and nothing else"
    for label in labels:
        check_label(label)
    for event in slices:
        check_slice(event)
    assert [e["ts"] for e in slices] == sorted(e["ts"] for e in slices)
    named = {(e["pid"], e["tid"]) for e in labels if e["name"] == "thread_name"}
    rows = {(e["pid"], e["tid"]) for e in slices}
    assert rows <= named
    assert {pid for pid, _ in rows} <= {e["pid"] for e in labels if e["name"] == "process_name"}
    for row in rows:
        check_row([e for e in slices if (e["pid"], e["tid"]) == row])
    return slices


def check_label(event: dict[str, Any]) -> None:
    (value,) = event["args"].values()
    assert isinstance(value, METADATA[event["name"]])
    assert isinstance(event["pid"], int)
    assert isinstance(event["tid"], int)


def check_slice(event: dict[str, Any]) -> None:
    assert set(event) == {"ph", "name", "cat", "ts", "dur", "pid", "tid", "args"}
    assert event["name"]
    assert event["pid"] > 0
    assert event["tid"] > 0
    for key in ("ts", "dur"):
        assert isinstance(event[key], Real)
        assert event[key] >= 0
    if event["cat"] == "communication":
        for name, kind in OPERATION_ARGS.items():
            assert isinstance(event["args"][name], kind), name
    else:
        assert isinstance(event["args"]["step"], int)


def check_row(slices: list[dict[str, Any]]) -> None:
    """Perfetto drops slices of one row that overlap without being nested; ours never overlap."""
    for before, after in pairwise(slices):
        assert before["ts"] + before["dur"] <= after["ts"] + 1e-6, (before, after)


def of_rank(slices: list[dict[str, Any]], rank: int) -> list[dict[str, Any]]:
    """A rank's slices."""
    return [e for e in slices if e["pid"] == rank + 1]
