"""What the recorder costs: a small all-reduce over gloo, with the bare kernels and with the wrapped ones, in turn.

    .venv/bin/python scripts/bench/recorder.py [--quick] [--json FILE]

Each round has as many operations of one kind as of the other; the figure is what the median operation of all rounds
takes longer. One rank shows the cost alone; two and four ranks wait for each other, as real ones do.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import common
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ftrain.comm.native import NativeRecorder, load_native
from ftrain.comm.ring import NATIVE, Identity, RingReader

ADDED_MICROSECONDS_MAX = 2.0
ELEMENTS = 16
WORLDS = (1, 2, 4)
OPERATIONS = 200
"""Of one kind in a round."""


def measure(rank: int, world: int, rounds: int, folder: Path) -> None:
    """One rank; the first writes the medians: bare, recorded."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    recorder = load_native(build=True)
    recorder.open(folder / f"comm.{rank}", Identity(NATIVE, os.getpid(), rank, rank, world, 1))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    tensor = torch.zeros(ELEMENTS)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * rounds + 2):
        recorded = bool((number + number // 2) % 2)  # neither kind always comes first
        switch(recorder, recorded)
        dist.barrier()
        took = [timed(tensor) for _ in range(OPERATIONS)]
        if number >= 2:
            times[recorded] += took
    live = RingReader(folder / f"comm.{rank}").live()
    assert live.head >= rounds * OPERATIONS, "the operations were not recorded"
    if rank == 0:
        (folder / "medians").write_text(f"{common.median(times[False])} {common.median(times[True])}")
    dist.barrier()
    dist.destroy_process_group()


def switch(recorder: NativeRecorder, recorded: bool) -> None:
    if recorded:
        recorder.install()
    else:
        recorder.uninstall()


def timed(tensor: torch.Tensor) -> float:
    began = time.perf_counter_ns()
    dist.all_reduce(tensor)
    return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    arguments = common.parser(__doc__ or "").parse_args()
    report = common.Report(f"all-reduce of {ELEMENTS * 4} bytes over gloo")
    rounds = 20 if arguments.quick else 100
    load_native(build=True)
    for world in WORLDS:
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="bench-recorder-") as name:
            folder = Path(name)
            mp.spawn(measure, (world, rounds, folder), world)
            bare, recorded = (float(word) for word in (folder / "medians").read_text().split())
        ranks = f"{world} rank{'s' * (world > 1)}"
        report.add(f"{ranks}: bare", bare, "us")
        report.add(f"{ranks}: recorded", recorded, "us")
        report.add(f"{ranks}: added", recorded - bare, "us", ADDED_MICROSECONDS_MAX)
        report.add(f"{ranks}: recorded over bare", recorded / bare, "ratio")
    report.write(arguments.json)


if __name__ == "__main__":
    main()
