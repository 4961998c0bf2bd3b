"""The recorder in real ranks: what it sees, whom it disturbs (nobody), and that it is read from outside.

The ranks are in recorder_ranks.py; it forks them from one process that has torch, and their rings are looked at here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import environment

from ftrain.comm import library
from ftrain.comm.ring import Live, RingReader, Table, exit_ns, is_failed, is_pending, ring_path
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import Op
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.rings.reader import CommReader

PROGRAM = Path(__file__).parent / "recorder_ranks.py"
TIMEOUT_SECONDS = 300.0
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    try:
        library.ensure()
    except library.Unavailable as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def running(scenario: str, world: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The ranks, from their start to their end."""
    command = [sys.executable, str(PROGRAM), scenario, str(world), str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def results(scenario: str, world: int, folder: Path) -> list[Any]:
    """Run a scenario to its end; what each rank found."""
    with running(scenario, world, folder) as process:
        code = process.wait(TIMEOUT_SECONDS)
    assert code == 0, (folder / "log").read_text()
    return [json.loads((folder / f"result.{rank}").read_text()) for rank in range(world)]


def eventually(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if found := look():
                return found
        time.sleep(0.01)
    raise AssertionError(f"not within {TIMEOUT_SECONDS} s: {what}")


def read(folder: Path, rank: int) -> tuple[RingReader, Live, Table]:
    reader = RingReader(ring_path(folder, rank))
    live = reader.live()
    return reader, live, reader.records(0, live.head)


EVERY_OPERATION = (
    "ALL_REDUCE BROADCAST REDUCE ALL_GATHER ALL_GATHER_SINGLE GATHER SCATTER REDUCE_SCATTER REDUCE_SCATTER_SINGLE "
    "ALL_TO_ALL_SINGLE ALL_TO_ALL BARRIER MONITORED_BARRIER ALL_REDUCE {} SEND RECEIVE SEND RECEIVE "
    "ALL_GATHER ALL_GATHER BROADCAST BROADCAST"
)
"""The last four are of objects: sizes, then bytes."""


def test_every_operation_is_recorded_and_none_is_changed(tmp_path: Path) -> None:
    for bare, recorded in results("every_operation", 2, tmp_path):
        assert bare == recorded
    for rank, pair in enumerate(("SEND RECEIVE", "RECEIVE SEND")):
        reader, live, records = read(tmp_path, rank)
        assert [Op(op).name for op in records["op"]] == EVERY_OPERATION.format(pair).split()
        assert not is_pending(records).any()
        assert not is_failed(records).any()
        assert (exit_ns(records) > records["enter_ns"]).all()
        counts, _ = reader.collectives(1)
        assert counts[["entered", "completed"]].tolist() == [(18, 18)]
        assert reader.channels(1)[0].tolist() == [(0, 1 - rank, 3, 3, 3, 3, 0, 0, 0)]
        assert reader.groups(1)[0].members == (0, 1)
        assert (live.inside, live.failed, live.closed) == (0, 0, 1)


def test_a_record_tells_what_was_asked_for(tmp_path: Path) -> None:
    results("every_operation", 2, tmp_path)
    _, _, records = read(tmp_path, 0)
    broadcast = records[records["op"] == Op.BROADCAST][0]
    assert [broadcast[key] for key in ("seq", "bytes", "elements", "dtype", "root")] == [2, 32, 8, 6, 1]
    assert records[records["op"] == Op.SEND][["seq", "root", "tag"]].tolist() == [(1, 1, 7), (2, 1, 0), (3, 1, 0)]
    barrier = records[records["op"] == Op.BARRIER][0]
    assert [barrier[key] for key in ("bytes", "dtype", "root")] == [0, 65535, -1]
    assert set(records["thread"].tolist()) == {json.loads((tmp_path / "pids").read_text())[0]}
    outside = records["enter_ns"][1:] >= exit_ns(records)[:-1]
    assert (records["gap_ns"][1:][outside] <= (records["enter_ns"][1:] - exit_ns(records)[:-1])[outside]).all()


def test_ddp_fsdp_dtensor_and_functional_collectives_are_seen_in_their_groups(tmp_path: Path) -> None:
    for bare, recorded in results("layers", 4, tmp_path):
        assert bare == recorded
    for rank in range(4):
        reader, live, records = read(tmp_path, rank)
        seen: dict[tuple[int, ...], set[str]] = {}
        groups = reader.groups(live.communicators)
        for record in records:
            seen.setdefault(groups[record["communicator"]].members or (), set()).add(Op(record["op"]).name)
        inner, outer = {0: ((0, 1), (0, 2)), 1: ((0, 1), (1, 3)), 2: ((2, 3), (0, 2)), 3: ((2, 3), (1, 3))}[rank]
        assert {"ALL_REDUCE", "ALL_GATHER_SINGLE", "REDUCE_SCATTER_SINGLE", "BROADCAST"} <= seen[0, 1, 2, 3]
        assert "ALL_REDUCE" in seen[inner]
        assert "ALL_GATHER_SINGLE_COALESCED" in seen[inner] & seen[outer]
        assert ((1, 2) in seen) == (rank in (1, 2))
        if rank in (1, 2):
            assert records[-1]["root"] == 2


def test_a_group_made_anew_is_another_one(tmp_path: Path) -> None:
    results("anew", 2, tmp_path)
    reader, live, _ = read(tmp_path, 0)
    assert [group.name for group in reader.groups(live.communicators)] == ["0", "0", "0"]
    assert reader.collectives(3)[0]["completed"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("scenario", ["stopped", "holding"])
def test_a_rank_that_is_stopped_or_holds_the_gil_is_read_from_outside(tmp_path: Path, scenario: str) -> None:
    with running(scenario, 2, tmp_path):

        def waiting() -> bool:
            counts = [read(tmp_path, rank)[0].collectives(1)[0][0] for rank in (0, 1)]
            return [(c["entered"], c["completed"]) for c in counts] == [(2, 1), (1, 1)]

        eventually(waiting, "rank 0 waits for rank 1")
        pids = json.loads((tmp_path / "pids").read_text())
        if scenario == "stopped":
            letter = (Path("/proc") / str(pids[1]) / "stat").read_text().rpartition(")")[2].split()[0]
            assert letter == "T"
        reader, live, records = read(tmp_path, 0)
        assert is_pending(records).tolist() == [False, True]
        _, recent = reader.collectives(1)
        assert recent[is_pending(recent)][["id", "seq", "op"]].tolist() == [(2, 2, Op.ALL_REDUCE)]
        assert (live.inside, live.closed) == (1, 0)
        reader, live, records = read(tmp_path, 1)
        assert is_pending(records).tolist() == [False]
        assert (reader.identity.pid, live.inside) == (pids[1], 0)


def test_no_record_is_read_torn(tmp_path: Path) -> None:
    """Given a writer at full speed, whatever is read of it fits together: sizes go with numbers."""
    checked = torn = 0
    with running("busy", 1, tmp_path) as process:
        reader = eventually(lambda: read(tmp_path, 0)[0], "a ring")
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while checked < 300_000 and time.monotonic() < deadline:
            records = reader.records(0, reader.live().head)
            recent = reader.collectives(1)[1]
            for found in (records, recent[recent["id"] != 0]):
                checked += len(found)
                sizes = 4 * (found["id"] % 700 % 7 + 1)
                torn += ((found["seq"] != found["id"]) | (found["bytes"] != sizes)).sum()
                torn += (~is_pending(found) & (exit_ns(found) < found["enter_ns"])).sum()
        (tmp_path / "enough").touch()
        assert process.wait(TIMEOUT_SECONDS) == 0, (tmp_path / "log").read_text()
    assert checked >= 300_000
    assert torn == 0


def test_what_a_device_does_is_recorded_when_it_does_it_and_not_changed(tmp_path: Path) -> None:
    for bare, recorded in results("device_operations", 2, tmp_path):
        assert bare == recorded
    for rank in range(2):
        reader, live, records = read(tmp_path, rank)
        assert not is_pending(records).any()
        assert not is_failed(records).any()
        assert (records["enter_ns"] <= records["reached"]).all()
        assert (records["reached"] <= exit_ns(records)).all()
        assert live.inside == 0
        counts, _ = reader.collectives(1)
        assert counts[["entered", "completed", "queued"]].tolist() == [(38, 38, 0)]
        assert reader.channels(1)[0].tolist() == [(0, 1 - rank, 3, 3, 3, 3, 0, 0, 0)]


def test_a_rank_whose_device_hangs_before_what_it_has_called_is_named(tmp_path: Path) -> None:
    """Its ring says that it has entered as much as the others, and more."""
    with running("frozen", 2, tmp_path):
        eventually((tmp_path / "called").exists, "rank 1 has called")
        node = CommReader("node0")
        workers = [(rank, rank, pid) for rank, pid in enumerate(json.loads((tmp_path / "pids").read_text()))]
        detector = Detector(1, {0: "node0", 1: "node0"})

        def verdict() -> Verdict | None:
            detector.take(node.read(1, workers, tmp_path), time.monotonic())
            return next(iter(detector.verdicts(time.monotonic())), None)

        found = eventually(verdict, "a verdict")
        assert (found.kind, found.ranks) == (Kind.HANG, (1,))
        assert "rank 1 on node0 has not entered all_reduce #41 of the world group" in found.sentence
        assert "rank 0 waits for it; it was called, but the device has not reached it" in found.sentence
        (place,) = node.report().ranks[1].collectives
        assert (place.entered, place.completed, place.queued, place.pending) == (40, 40, 20, ())
        (channel,) = node.report().ranks[1].channels
        assert (channel.sends_entered, channel.sends_queued, channel.pending) == (0, 1, ())
        (tmp_path / "thaw").touch()
        again = Detector(1, {0: "node0", 1: "node0"})

        def stuck() -> Verdict | None:
            again.take(node.read(1, workers, tmp_path), time.monotonic())
            return next((v for v in again.verdicts(time.monotonic()) if v.kind is Kind.COMMUNICATION_HANG), None)

        assert (
            "all members have entered all_reduce #41" in eventually(stuck, "all take part, and nobody leaves").sentence
        )
        node.close()


def test_calls_in_a_group_of_calls_end_with_it(tmp_path: Path) -> None:
    first, other = results("coalesced", 2, tmp_path)
    assert first == [[1, 0, 1, 0], [1, 1, 1, 1], [2, 2, 2, 2]]
    assert other[1:] == first[1:]


def test_what_a_rank_waits_for_is_told_from_what_covers_its_computation(tmp_path: Path) -> None:
    for waited, recorded, starved in results("covering", 2, tmp_path):
        assert waited - starved - 0.01 <= recorded <= 1.1 * waited + starved + 0.02


def test_what_a_thread_waits_for_beside_the_training_the_training_does_not_wait_for(tmp_path: Path) -> None:
    """A checkpoint that is written in the background: its group is none of the steps'."""
    found, _ = results("aside", 2, tmp_path)
    beside, itself = found
    assert beside == 0.0
    assert itself >= 0.09


def test_what_raises_is_recorded_as_failed(tmp_path: Path) -> None:
    errors = results("failing", 2, tmp_path)
    assert [len(each) for each in errors] == [2, 2], errors
    reader, live, records = read(tmp_path, 0)
    assert [Op(op).name for op in records["op"]] == ["ALL_GATHER", "RECEIVE"]
    assert is_failed(records).all()
    assert (live.failed, live.inside) == (2, 0)
    assert reader.collectives(1)[0][["entered", "completed", "failed"]].tolist() == [(1, 1, 1)]


def test_full_tables_are_counted_and_a_pending_operation_stays_findable(tmp_path: Path) -> None:
    assert results("many", 2, tmp_path) == [[1], [1]]
    _, live, records = read(tmp_path, 0)
    assert live.communicators == 128
    # The default group and the first of one member are in the table already, and take no room twice.
    assert live.missed_communicators == 2
    assert records["id"][-1] == live.head
    assert not is_pending(records).any()
