"""What the recorder costs: a small all-reduce over gloo, with the bare kernels and with the wrapped ones, in turn.

    .venv/bin/python scripts/bench/recorder.py [--quick] [--json FILE]

A pair of rounds is one of each kind, in either order; what is added is the median, over all pairs, of what the median
operation takes longer, so that a machine that gets slower meanwhile does not count; and how far off that may be, as its
standard error (by the bootstrap: Efron, 1979). One rank shows the cost alone; two and four wait for each other, as real
ones do, and for processors, which moves single operations by far more than the recorder does.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import common
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from ftrain.comm.native import NativeRecorder, load_native
from ftrain.comm.ring import NATIVE, Identity, RingReader

ADDED_MICROSECONDS_MAX = 2.0
ELEMENTS = 16
PAIRS = {1: 400, 2: 800, 4: 200}
"""By number of ranks; four of them share two cores, and take 4 ms for an operation."""
PAIRS_QUICK = 60
RESAMPLES = 200
OPERATIONS = 50
"""In a round."""


def measure(rank: int, world: int, pairs: int, folder: Path) -> None:
    """One rank; the first writes what it found: bare, recorded, added."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    recorder = load_native(build=True)
    recorder.open(folder / f"comm.{rank}", Identity(NATIVE, os.getpid(), rank, rank, world, 1))
    store = FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    tensor = torch.zeros(ELEMENTS)
    medians: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(-1, pairs):  # the first warms up
        for recorded in (pair % 2 == 0, pair % 2 != 0):
            switch(recorder, recorded)
            dist.barrier()
            took = common.median([timed(tensor) for _ in range(OPERATIONS)])
            if pair >= 0:
                medians[recorded].append(took)
    live = RingReader(folder / f"comm.{rank}").live()
    assert live.head >= pairs * OPERATIONS, "the operations were not recorded"
    if rank == 0:
        added = [one - other for one, other in zip(medians[True], medians[False], strict=True)]
        found = [*map(common.median, (medians[False], medians[True], added)), standard_error(added)]
        (folder / "found").write_text(" ".join(map(str, found)))
    dist.barrier()
    dist.destroy_process_group()


def switch(recorder: NativeRecorder, recorded: bool) -> None:
    if recorded:
        recorder.install()
    else:
        recorder.uninstall()


def standard_error(values: list[float]) -> float:
    """Of their median."""
    chance = random.Random(0)
    return statistics.stdev(common.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))


def timed(tensor: torch.Tensor) -> float:
    began = time.perf_counter_ns()
    dist.all_reduce(tensor)
    return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    arguments = common.parser(__doc__ or "").parse_args()
    report = common.Report(f"all-reduce of {ELEMENTS * 4} bytes over gloo")
    load_native(build=True)
    for world, pairs in PAIRS.items():
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-recorder-") as name:
            folder = Path(name)
            common.run_ranks(world, measure, world, PAIRS_QUICK if arguments.quick else pairs, folder)
            bare, recorded, added, error = (float(word) for word in (folder / "found").read_text().split())
        ranks = f"{world} rank{'s' * (world > 1)}"
        report.add(f"{ranks}: bare", bare, "us")
        report.add(f"{ranks}: recorded", recorded, "us")
        report.add(f"{ranks}: added", added, "us", ADDED_MICROSECONDS_MAX)
        report.add(f"{ranks}: standard error of that", error, "us")
        report.add(f"{ranks}: recorded over bare", recorded / bare, "ratio")
    report.write(arguments.json)


if __name__ == "__main__":
    main()
