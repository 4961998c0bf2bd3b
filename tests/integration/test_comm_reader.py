"""The agent's reader on real jobs, recorded by the library and by the Python recorder: both tell the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from processes import environment

from ftrain.comm import library
from ftrain.comm.ring import NATIVE, PYTHON, RingReader, ring_path
from ftrain_launcher.detect.records import NodeReport, Op, RankRecord
from ftrain_launcher.rings.process_state import ProcessWatch
from ftrain_launcher.rings.reader import CommReader

PROGRAM = Path(__file__).with_name("worker_comm.py")
SECONDS_MAX = 300.0


class Job:
    """Two ranks of one node, and the reader of their rings."""

    def __init__(self, folder: Path, ranks: list[subprocess.Popen[str]]) -> None:
        self.folder, self.ranks = folder, ranks
        self._reader = CommReader("node0")
        self._workers = [(rank, rank, process.pid) for rank, process in enumerate(ranks)]

    def lines(self) -> list[str]:
        """What each rank says next."""
        return [process.stdout.readline() for process in self.ranks if process.stdout is not None]

    def look(self) -> bool:
        return self._reader.look(1, self._workers, self.folder)

    def report(self) -> NodeReport:
        self.look()
        return self._reader.report()

    def wait(self, condition: Callable[[NodeReport], bool]) -> NodeReport:
        """The first report, ten a second, for which the condition holds."""
        end = time.monotonic() + SECONDS_MAX
        while time.monotonic() < end:
            report = self.report()
            if condition(report):
                return report
            time.sleep(0.1)
        raise TimeoutError(report)


@contextmanager
def started(folder: Path, scenario: str, kind: int) -> Iterator[Job]:
    if kind == NATIVE:
        library.ensure()
    (folder / "node").mkdir(parents=True)
    variables = {
        **environment(),
        **({} if kind == NATIVE else {"XDG_CACHE_HOME": str(folder / "empty")}),
        "GLOO_SOCKET_IFNAME": "lo",
        "FTRAIN_NODE_DIR": str(folder / "node"),
        "FTRAIN_GENERATION": "1",
        "FTRAIN_RECORDER": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }
    with ExitStack() as stack:
        ranks = []
        for rank in range(2):
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", str(PROGRAM), scenario, str(folder / "store")],
                env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            ranks.append(process)
        yield Job(folder / "node", ranks)


def shape(report: NodeReport) -> list[object]:
    """What must not depend on who has recorded it, nor on time."""
    told: list[object] = []
    for rank in report.ranks:
        for of in rank.collectives:
            last = of.last
            assert last is not None
            operation = (last.seq, Op(last.op).name, last.bytes, last.dtype, last.elements, last.root)
            members = report.communicators[of.communicator].members
            told.append((rank.rank, members, of.entered, of.completed, len(of.pending), operation))
        for channel in rank.channels:
            counts = (channel.sends_entered, channel.sends_completed)
            counts += (channel.receives_entered, channel.receives_completed)
            told.append((rank.rank, "channel", channel.peer, counts, len(channel.pending)))
        told.append((rank.rank, "step", rank.step))
    return told


def one(report: NodeReport, rank: int) -> RankRecord:
    return next(record for record in report.ranks if record.rank == rank)


def settled(report: NodeReport) -> bool:
    """All have left what they have entered; a callback may come later than its operation's end."""
    return len(report.ranks) == 2 and all(
        of.entered == of.completed for rank in report.ranks for of in rank.collectives
    )


@pytest.mark.timeout(400)  # the library may have to be built
def test_the_library_and_python_record_the_same(tmp_path: Path):
    """Given every kind of operation, when either recorder records them, then reports and results are the same."""
    reports, results = {}, {}
    for kind in (PYTHON, NATIVE):
        with started(tmp_path / str(kind), "operations", kind) as job:
            lines = job.lines()
            reports[kind] = job.wait(settled)
            results[kind] = [line.split()[2] for line in lines]
            assert {line.split()[1] for line in lines} == {"RecordedGroup" if kind == PYTHON else "ProcessGroup"}
            ring = RingReader(ring_path(job.folder, 0))
            assert ring.identity.kind == kind
            ring.close()
    assert results[PYTHON] == results[NATIVE]
    assert shape(reports[PYTHON]) == shape(reports[NATIVE])
    assert [c.members for c in reports[PYTHON].communicators] == [c.members for c in reports[NATIVE].communicators]


@pytest.mark.parametrize("kind", [PYTHON, NATIVE], ids=["python", "native"])
def test_a_stopped_worker_is_seen_and_the_other_waits(tmp_path: Path, kind: int):
    """Given steps with a history, when rank 1 is stopped, then its letter is T, and rank 0's operation gets late."""
    with started(tmp_path, "steps", kind) as job:
        job.lines()
        running = job.wait(lambda report: len(report.steps) > 0)
        assert running.unrecorded == ()
        assert running.steps[0].seconds > 0
        assert sum(of.operations for of in running.steps[0].collectives) == 2
        os.kill(job.ranks[1].pid, signal.SIGSTOP)
        os.waitid(os.P_PID, job.ranks[1].pid, os.WSTOPPED | os.WNOWAIT)
        assert ProcessWatch(job.ranks[1].pid).read().letter == "T"

        def waits(report: NodeReport) -> bool:
            return any(operation.age_seconds > 0.5 for of in one(report, 0).collectives for operation in of.pending)

        report = job.wait(waits)
        assert job.look(), "there is news"
        stopped, waiting = one(report, 1).process, one(report, 0).process
        assert stopped is not None
        assert waiting is not None
        assert (stopped.letter, stopped.main_thread) == ("T", "T")
        assert waiting.letter in "RSD"
        (pending,) = [operation for of in one(report, 0).collectives for operation in of.pending]
        assert pending.usual_seconds is not None
        assert pending.age_seconds > pending.usual_seconds


def test_a_process_that_is_gone_has_no_letter():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        watch = ProcessWatch(process.pid)
        assert watch.read().letter != ""
        process.kill()
    assert watch.read().letter == ""
    watch.close()
    assert watch.read().letter == ""
