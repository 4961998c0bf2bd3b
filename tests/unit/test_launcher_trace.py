"""From rings to a trace that Perfetto opens: what is read, how clocks are brought together, what is written."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rings import MadeRing
from traces import check_trace, of_rank

from ftrain.comm.ring import HOLDS, WAITS
from ftrain_launcher.commands.trace import write
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.records import Communicator, Op
from ftrain_launcher.errors import UsageError
from ftrain_launcher.from_agent import RankState
from ftrain_launcher.questions import ClockRead, ClockWanted, TracePart, TraceWanted
from ftrain_launcher.to_agent import ToAgent
from ftrain_launcher.trace.events import missing
from ftrain_launcher.trace.records import JobTrace, NodeTrace, NodeTraced, RankTrace, StepMark, TraceRecord
from ftrain_launcher.trace.rings import read_rings
from ftrain_launcher.trace.tracing import Tracing

MS = 1_000_000
WORLD = Communicator("dp", (0, 1))
EMPTY = NodeTrace(generation=1, read_ns=0)


def worker(rank: int, local_rank: int = 0, pid: int | None = 99) -> RankState:
    return RankState(rank, local_rank, pid, "running")


def wish(steps: int = 20, records_max: int = 1000) -> TraceWanted:
    return TraceWanted(1, steps, records_max)


# ---- reading rings


def fill(ring: MadeRing, steps: int, *between: int) -> None:
    """Two all-reduces a step of 10 ms, and one pending after the last; ``between``: marks before each step's own."""
    group = ring.group("dp", 0, 1)
    for step in range(steps):
        for half in (0, 1):
            entered = 10 * MS * step + 5 * MS * half
            ring.record(group, Op.ALL_REDUCE, 2 * step + half + 1, entered, entered + MS)
        for mark in (*between, step):
            ring.mark(mark, 10 * MS * (step + 1))
    ring.record(group, Op.ALL_REDUCE, 2 * steps + 1, 10 * MS * steps, 0)


@pytest.mark.parametrize("between", [(), (WAITS, HOLDS)], ids=["", "waits"])
def test_a_ring_is_read_from_the_end_of_the_step_before_the_wanted_ones(
    tmp_path: Path, between: tuple[int, ...]
) -> None:
    with MadeRing(tmp_path, 0) as ring:
        fill(ring, 30, *between)
    trace = read_rings(tmp_path, 1, [worker(0)], wish(steps=5))
    assert trace.communicators == (WORLD,)
    (rank,) = trace.ranks
    assert [mark.step for mark in rank.marks] == [24, 25, 26, 27, 28, 29]
    assert [record.seq for record in rank.records] == list(range(51, 62))
    assert rank.records[0] == TraceRecord(0, Op.ALL_REDUCE, 51, 64, 250 * MS, 251 * MS)
    assert rank.records[-1].left_ns == 0
    assert trace.read_ns <= time.monotonic_ns()


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    with MadeRing(tmp_path, 0) as ring:
        fill(ring, 30)
    (rank,) = read_rings(tmp_path, 1, [worker(0)], wish(records_max=3)).ranks
    assert [record.seq for record in rank.records] == [59, 60, 61]


def test_a_job_in_its_first_step_has_a_trace_too(tmp_path: Path) -> None:
    with MadeRing(tmp_path, 0) as ring:
        fill(ring, 0)
    (rank,) = read_rings(tmp_path, 1, [worker(0)], wish()).ranks
    assert (len(rank.records), rank.marks) == (1, ())


def test_ranks_without_a_ring_of_theirs_are_told(tmp_path: Path) -> None:
    for rank, generation in ((0, 2), (1, 1), (7, 2)):
        with MadeRing(tmp_path, rank, local_rank=min(rank, 2), generation=generation):
            pass
    (tmp_path / "comm.3").write_bytes(b"something else")
    workers = [worker(0), worker(1, 1), worker(2, 2), worker(3, 3), worker(4, 4), worker(5, 5, pid=None)]
    trace = read_rings(tmp_path, 2, workers, wish())
    assert [rank.rank for rank in trace.ranks] == [0]
    assert trace.unrecorded == (1, 2, 3, 4)


def test_one_group_of_several_ranks_is_one_communicator(tmp_path: Path) -> None:
    for rank in (0, 1):
        with MadeRing(tmp_path, rank, local_rank=rank) as ring:
            tensor = ring.group("tp", rank, rank + 2, description="mesh_tp")
            ring.record(ring.group("dp", 0, 1), Op.BROADCAST, 1, MS, 2 * MS, root=0)
            ring.record(tensor, Op.SEND, 1, MS, 2 * MS, root=rank + 2, failed=True)
    trace = read_rings(tmp_path, 1, [worker(0), worker(1, 1)], wish())
    assert trace.communicators == (Communicator("tp", (0, 2), "mesh_tp"), WORLD, Communicator("tp", (1, 3), "mesh_tp"))
    assert [[r.communicator for r in rank.records] for rank in trace.ranks] == [[1, 0], [1, 2]]
    assert trace.ranks[1].records[1] == TraceRecord(2, Op.SEND, 1, 64, MS, 2 * MS, 3, True)


# ---- clocks


class Agent:
    """An agent's end of the line: a clock that is ahead, and a trace."""

    def __init__(self, ahead_seconds: float) -> None:
        self._ahead = ahead_seconds
        self.hear: Callable[[object], None] = lambda answer: None

    def put(self, message: ToAgent) -> None:
        match message:
            case ClockWanted(request):
                self.requests.take(ClockRead("node-0", request, time.monotonic() + self._ahead))
            case TraceWanted(request):
                self.requests.take(TracePart("node-0", request, EMPTY))

    requests: Requests


def gather(lines: dict[str, Any], nodes: list[str]) -> tuple[NodeTraced, ...]:
    requests = Requests(lines)
    for line in lines.values():
        line.requests = requests
    return asyncio.run(Tracing(requests).run(nodes, 8, 20))


def test_a_nodes_clock_is_brought_to_unix_time() -> None:
    (found,) = gather({"node-0": Agent(ahead_seconds=5000.0)}, ["node-0"])
    assert found.trace == EMPTY
    now = time.monotonic_ns() + 5000 * 1000 * MS + found.offset_ns
    assert abs(now - time.time_ns()) < found.error_ns + 50 * MS


def test_an_agent_that_is_not_there_is_missing() -> None:
    found = gather({"node-0": Agent(0.0)}, ["node-0", "node-1"])
    assert missing(JobTrace(job="j", nodes=found)) == ["node-1 is missing: its agent is not connected"]


# ---- the file


def record(entered: int, left: int, op: int = Op.ALL_REDUCE, communicator: int = 0, **more: Any) -> TraceRecord:
    return TraceRecord(communicator, op, 7, 64, entered, left, **more)


def traced(
    rank: int, records: list[TraceRecord], marks: tuple[StepMark, ...] = (), offset_ns: int = 0, read_ns: int = 100 * MS
) -> NodeTraced:
    trace = NodeTrace(
        generation=1, read_ns=read_ns, communicators=(WORLD,), ranks=(RankTrace(rank, tuple(records), marks),)
    )
    return NodeTraced(node=f"node-{rank}", trace=trace, offset_ns=offset_ns, error_ns=MS)


def written(path: Path, *nodes: NodeTraced) -> dict[str, Any]:
    write(JobTrace(job="j", nodes=nodes), path)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def test_clocks_of_hosts_are_aligned(out: Path) -> None:
    """Both ranks left one all-reduce at the same time; their hosts were started days apart."""
    far = 500_000 * 1000 * MS
    slices = check_trace(
        written(
            out,
            traced(0, [record(10 * MS, 30 * MS)], offset_ns=far),
            traced(1, [record(25 * MS + far, 30 * MS + far)], read_ns=far + 100 * MS),
        )
    )
    assert [(e["pid"], e["ts"], e["dur"]) for e in slices] == [(1, 0.0, 20_000.0), (2, 15_000.0, 5_000.0)]


def test_what_is_pending_ends_when_it_was_looked_at(out: Path) -> None:
    slices = check_trace(written(out, traced(0, [record(10 * MS, 0)], (StepMark(4, 20 * MS),))))
    operation, step = slices
    assert (operation["dur"], operation["args"]["pending"]) == (90_000.0, True)
    assert (step["name"], step["dur"], step["args"]["pending"]) == ("step 5", 80_000.0, True)


def test_steps_have_a_row_of_their_own(out: Path) -> None:
    marks = tuple(StepMark(step, 10 * MS * step) for step in range(3, 6))
    slices = check_trace(written(out, traced(0, [], marks, read_ns=60 * MS)))
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in slices] == [
        ("step 4", 0.0, 9_999.999, 1),
        ("step 5", 10_000.0, 9_999.999, 1),
        ("step 6", 20_000.0, 10_000.0, 1),
    ]


def test_operations_that_overlap_go_into_further_rows(out: Path) -> None:
    records = [record(0, 10 * MS), record(5 * MS, 15 * MS), record(10 * MS, 20 * MS), record(12 * MS, 13 * MS)]
    document = written(out, traced(0, records))
    assert [e["tid"] for e in check_trace(document)] == [2, 3, 2, 4]
    names = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"]
    assert names == ["steps", "'dp' (ranks 0-1)", "'dp' (ranks 0-1) (2)", "'dp' (ranks 0-1) (3)"]


def test_sends_and_receives_have_rows_apart_and_name_the_peer(out: Path) -> None:
    records = [record(0, MS, Op.SEND, root=1), record(0, MS, Op.BROADCAST, root=0, failed=True), record(0, MS, 99)]
    document = written(out, traced(0, records))
    shown = {e["name"]: e for e in check_trace(document)}
    assert shown["send"]["args"]["peer"] == 1
    assert shown["broadcast"]["args"]["root"] == 0
    assert shown["broadcast"]["args"]["failed"]
    assert shown["broadcast"]["args"]["members"] == "ranks 0-1"
    assert shown["operation 99"]["tid"] == shown["broadcast"]["tid"] + 1
    assert shown["send"]["tid"] == 4
    names = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"]
    assert names[-1] == "'dp' (ranks 0-1): point to point"


def test_neighbours_do_not_overlap_by_rounding(out: Path) -> None:
    """Unix time in nanoseconds is more than a float holds."""
    moments = [1_763_000_000_000_000_000 + 1_001 * n for n in range(50)]
    records = [record(a, b) for a, b in pairwise(moments)]
    slices = check_trace(written(out, traced(0, records, read_ns=moments[-1])))
    assert {e["tid"] for e in of_rank(slices, 0)} == {2}
    assert slices[-1]["ts"] + slices[-1]["dur"] == pytest.approx(49 * 1.001)


def test_the_file_is_replaced_at_once_or_not_at_all(out: Path) -> None:
    out.write_text("old")
    with pytest.raises(UsageError, match="--out"):
        write(JobTrace(job="j", nodes=(traced(0, []),)), out / "below")
    assert written(out, traced(0, [record(0, MS)]))["otherData"]["job"] == "j"
    assert [path.name for path in out.parent.iterdir()] == ["trace.json"]
    assert out.stat().st_mode & 0o044, "others may read it like any file"


def test_a_trace_survives_the_way_from_agent_to_command(out: Path) -> None:
    sent = JobTrace(job="j", nodes=(traced(0, [record(0, 0, failed=True)], (StepMark(1, 2),)),))
    assert msgspec.convert(json.loads(msgspec.json.encode(sent)), JobTrace) == sent
