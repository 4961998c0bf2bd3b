"""What it costs an agent to read the rings of its node's workers: 8 ranks, 10 times a second.

``.venv/bin/python scripts/bench/reader.py [--quick] [--json FILE]``. Another process writes the rings. What is told is
processor time of the reader, the middle of three runs: other load on the machine disturbs it less than the clock's.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

from ftrain_launcher.rings.reader import CommReader

RANKS = 8
LOOKS_A_REPORT = 5
LIMIT_MS = 10.0
"""Of a second: 1 % of a core."""


def measure(seconds: float, operations_per_second: float) -> tuple[float, float, float]:
    """Processor time in ms a second, that of one look in microseconds, and the steps that were seen a second."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ftrain-bench-") as name:
        command = [sys.executable, str(Path(__file__).with_name("reader_writer.py"))]
        command += [name, str(RANKS), str(operations_per_second)]
        writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert writer.stdin is not None
        assert writer.stdout is not None
        with writer:
            try:
                writer.stdout.readline()
                return _read(Path(name), writer.pid, seconds)
            finally:
                writer.stdin.close()


def _read(folder: Path, pid: int, seconds: float) -> tuple[float, float, float]:
    workers = [(rank, rank, pid) for rank in range(RANKS)]
    reader = CommReader("node0")
    for _ in range(10):  # rings are opened, histories begin
        reader.read(1, workers, folder)
        time.sleep(0.02)
    steps = looks = 0
    spent = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        before = time.process_time()
        news = reader.look(1, workers, folder)
        looks += 1
        report = reader.report() if news or looks % LOOKS_A_REPORT == 0 else None
        spent += time.process_time() - before
        if report is not None:
            steps += len(report.steps)
            if len(report.ranks) != RANKS:
                raise RuntimeError(f"ranks {report.unrecorded} are not seen")
    reader.close()
    return spent / looks * 10 * 1e3, spent / looks * 1e6, steps / seconds


def main() -> None:
    arguments = common.parser(__doc__ or "").parse_args()
    seconds = 2.0 if arguments.quick else 10.0
    report = common.Report(f"the agent's reader: {RANKS} ranks, 10 looks a second")
    for rate in (20, 200, 1000):
        runs = [measure(seconds, rate) for _ in range(3)]
        cpu_ms, look_us, steps = (statistics.median(column) for column in zip(*runs, strict=True))
        limit = LIMIT_MS if rate == 200 else None
        report.add(f"{rate} operations a second of each rank: processor time", cpu_ms, "ms/s", limit)
        report.add(f"{rate} operations a second of each rank: one look", look_us, "us")
        report.add(f"{rate} operations a second of each rank: steps seen", steps, "1/s")
    report.add("memory of this process at its most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    report.write(arguments.json)


if __name__ == "__main__":
    main()
