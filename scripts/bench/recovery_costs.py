"""What fault tolerance costs a job that nothing happens to: how long its launcher takes, and what its processes use.

*launch*: from the start of ``ftrain run`` and of torchrun, in turn, to the first line of the user's script, to the end
of its ``import torch``, and to a model in DDP, of the last of four ranks on one node. ftrain's ranks have torch before
their first line, from the zygote, and import what DDP needs one by one; torchrun's do so with both.

*idle*: controller, agent and daemon of a job of one node whose four ranks wait, after a few steps with snapshots:
processor time by /proc, and memory that is resident, shared memory (the arena) aside.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import psutil
from common import median
from job import FTRAIN, Job, all_ranks_at
from rivals.commands import RANKS, TORCHRUN, TORCHRUN_ENVIRONMENT, WORKER, Command

FIRST_LINE = Path(__file__).resolve().parent / "first_line.py"
LAUNCH_TIMEOUT_SECONDS = 120.0
IDLE_TIMEOUT_SECONDS = 60.0
IDLE_STEPS = 3
"""As in the worker."""
SETTLE_SECONDS = 3.0
"""What follows the last snapshot is over by then."""


class Launch(NamedTuple):
    """Seconds from the launcher's start until all ranks had got there."""

    first_line: float
    torch_imported: float
    ddp_made: float


def launch(command: list[str], folder: Path, environment: dict[str, str]) -> Launch:
    """One job to its end.

    Raises:
        RuntimeError: it failed.
    """
    folder.mkdir(parents=True)
    began = time.time()
    with Command([*command, str(FIRST_LINE), str(folder)], folder / "log", environment) as job:
        try:
            code = job.process.wait(LAUNCH_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise RuntimeError(f"{command}: ended with {code}\n{job.tail()}")
    ranks = [[float(when) - began for when in path.read_text().split()] for path in folder.glob("first-*")]
    if len(ranks) != RANKS:
        raise RuntimeError(f"{command}: {len(ranks)} ranks\n{(folder / 'log').read_text()}")
    return Launch(*map(max, zip(*ranks, strict=True)))


def launches(folder: Path, rounds: int) -> tuple[Launch, Launch]:
    """Medians of ours and of torchrun's."""
    nproc = ["--nproc-per-node", str(RANKS)]
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(launch([FTRAIN, "run", *nproc], folder / f"ours-{number}", {}))
        theirs.append(launch([*TORCHRUN, "--standalone", *nproc], folder / f"theirs-{number}", TORCHRUN_ENVIRONMENT))
    return Launch(*map(median, zip(*ours, strict=True))), Launch(*map(median, zip(*theirs, strict=True)))


class Use(NamedTuple):
    """What a process uses while nothing happens."""

    cores: float
    resident_bytes: int


def idle(name: str, folder: Path, seconds: float) -> dict[str, Use]:
    """What each of our processes uses in so many seconds of a job that waits."""
    folder.mkdir()
    flags = ["--nproc-per-node", str(RANKS), "--snapshot-every", "1"]
    with Job(name, flags, WORKER, ["idle", str(folder)], folder / "log") as job:
        status = job.wait_for("idle", lambda s: all_ranks_at(s, IDLE_STEPS - 1, RANKS), IDLE_TIMEOUT_SECONDS)
        time.sleep(SETTLE_SECONDS)
        (node,) = status["nodes"]
        pids = {"controller": status["controller"]["pid"], "agent": node["agent_pid"], "daemon": node["daemon_pid"]}
        processes = {what: psutil.Process(pid) for what, pid in pids.items()}
        before, began = {what: sum(process.cpu_times()[:2]) for what, process in processes.items()}, time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        return {
            what: Use((sum(process.cpu_times()[:2]) - before[what]) / passed, own_memory(process))
            for what, process in processes.items()
        }


def own_memory(process: psutil.Process) -> int:
    """Resident bytes that are not shared memory."""
    found = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return 1024 * sum(int(found[name].split()[0]) for name in ("RssAnon", "RssFile"))
