"""Runs one trial of the campaign as a real job, and reads what came of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT

sys.path[:0] = [str(ROOT / "tests")]  # for its hosts in network namespaces

import ready  # noqa: E402
from detect_cases import Case, Json, Outcome, Trial  # noqa: E402
from hosts import Lab  # noqa: E402
from hosts.job import TIMEOUTS, HostJob  # noqa: E402
from job import STOP_TIMEOUT_SECONDS, Job  # noqa: E402

from ftrain_launcher.control import views  # noqa: E402
from ftrain_launcher.control.journal import replay  # noqa: E402

FAULTS = ROOT / "scripts" / "bench" / "faults"
TRAINEE = FAULTS / "trainee.py"
NODES = {"dp": 2, "dp_tp": 4, "dp_pp": 4}
"""By shape, of two ranks each."""
PER_NODE = 2
HOSTS = 4
JOB_SECONDS_MAX = 240.0
LINK_SECONDS_MAX = 30.0
"""For what must be said of a link."""
CGROUPS = Path("/sys/fs/cgroup")
QUOTA_MICROSECONDS, PERIOD_MICROSECONDS = 1000, 20000
"""A step uses a processor for some 10 ms, so that it takes 200: half as long again as it does where ranks crowd."""
WIDTH_ON_HOSTS = 256
"""Transfers that a network notices: 256 KiB a layer."""
BYTES_PER_SECOND, DELAY_SECONDS, LOSS, LOSS_ONE_WAY = 4e6, 0.02, 0.1, 0.05


def world_size(shape: str, case: Case) -> int:
    """How many ranks a trial has."""
    return HOSTS if case.on_hosts else NODES[shape] * PER_NODE


def run(trial: Trial, folder: Path) -> Outcome:
    """Run a trial to its end, in a new folder."""
    (folder / "out").mkdir(parents=True)
    if trial.case.on_hosts:
        return _run_on_hosts(trial, folder)
    with _cgroup(trial) as more:
        arguments = [*_arguments(trial), "--rank", str(trial.rank), "--fault", trial.case.fault, *more]
        exit_code = train(folder, trial.shape, trial.case.flags, ["--shape", trial.shape, *arguments])
    return read(folder, world_size(trial.shape, trial.case), exit_code)


def train(
    folder: Path, shape: str, flags: tuple[str, ...], arguments: list[str], seconds_max: float = JOB_SECONDS_MAX
) -> int | None:
    """Run one job on emulated nodes; its exit code, None if it had to be ended."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    where = ["--local-nodes", str(NODES[shape]), "--nproc-per-node", str(PER_NODE)]
    os.environ["FTRAIN_HOME"] = str(folder / "home")
    name = f"detect-{os.getpid()}-{folder.name}"
    with Job(name, [*where, *flags], TRAINEE, ["--out", str(folder / "out"), *arguments], folder / "log") as job:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return job.process.wait(seconds_max)
    return None


def read(folder: Path, ranks: int, exit_code: int | None) -> Outcome:
    """What a job that has ended left in its folder."""
    out = folder / "out"
    told = sorted((float(when), int(step)) for when, step in (f.read_text().split() for f in out.glob("fault-*")))
    fault_time, fault_step = told[0] if told else (None, None)
    return Outcome(exit_code, incidents(folder / "home"), fault_time, fault_step, _new_step_time(out, ranks))


def incidents(home: Path) -> list[Json]:
    """All incidents of the job in a state folder, as ``ftrain incidents NUMBER --json`` tells them."""
    coordinator = replay(next(home.glob("jobs/*/journal.jsonl")))
    return [views.incident(coordinator, found.number)["incident"] for found in coordinator.incidents]


def _arguments(trial: Trial) -> list[str]:
    steps = trial.at_step + trial.case.more_steps
    return ["--at-step", str(trial.at_step), "--steps", str(steps), *trial.case.arguments]


def _new_step_time(out: Path, ranks: int) -> float | None:
    """When all ranks had made their first step, after the first generation, that nobody had made in it."""
    lines = [
        [(int(step), float(when), int(generation)) for step, when, generation in map(str.split, text.splitlines())]
        for text in (path.read_text() for path in out.glob("rank-*.log"))
    ]
    done = max((step for rank in lines for step, _, generation in rank if generation == 1), default=-1)
    firsts = [min((when for step, when, _ in rank if step > done), default=None) for rank in lines]
    times = [first for first in firsts if first is not None]
    return max(times) if times and len(times) == ranks else None


@contextlib.contextmanager
def _cgroup(trial: Trial) -> Iterator[list[str]]:
    """A cgroup with a twentieth of a processor, if the trial needs one; the argument that names it.

    Raises:
        OSError: none can be made here.
    """
    if trial.case.fault != "quota":
        yield []
        return
    is_first = (CGROUPS / "cpu").is_dir()
    folder = CGROUPS / ("cpu" if is_first else "") / f"ftrain-bench-{os.getpid()}"
    folder.mkdir()
    try:
        if is_first:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (folder / "cpu.cfs_quota_us").write_text(str(QUOTA_MICROSECONDS))
        else:
            (folder / "cpu.max").write_text(f"{QUOTA_MICROSECONDS} {PERIOD_MICROSECONDS}")
        yield ["--cgroup", str(folder)]
    finally:
        folder.rmdir()


@contextlib.contextmanager
def neighbours(count: int, seed: int) -> Iterator[None]:
    """So many other users of the machine."""
    command = [sys.executable, str(FAULTS / "neighbour.py")]
    running = [subprocess.Popen([*command, str(seed + number)]) for number in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait(STOP_TIMEOUT_SECONDS)


# ---- hosts


def close() -> None:
    """End what the jobs of all trials were started by."""
    ready.close()


def _run_on_hosts(trial: Trial, folder: Path) -> Outcome:
    """Break the network between hosts until something is said of it, or it is too late."""
    arguments = ("--shape", "dp", "--steps", "1000000", "--width", str(WIDTH_ON_HOSTS))
    with Lab(HOSTS) as lab:
        job = HostJob(lab, folder / "job", "--nnodes", str(HOSTS), *TIMEOUTS, program=str(TRAINEE), arguments=arguments)
        try:
            job.start_all(*lab.hosts, nodes=HOSTS)
            status = job.wait_step(trial.at_step)
            name = next(node["name"] for node in status["nodes"] if node["position"] == trial.rank)
            step = max(entry["step"] for node in status["nodes"] for entry in node["ranks"])
            fault_time = time.time()
            _break(lab, trial)
            found: list[Json] = []
            while not found and time.time() < fault_time + LINK_SECONDS_MAX:
                time.sleep(0.2)
                found = [incident for incident in incidents(job.home(1)) if incident["verdicts"]]
        finally:
            job.close()
    return Outcome(None, found, fault_time, step, None, name)


def _break(lab: Any, trial: Trial) -> None:
    host = trial.rank + 1
    match trial.case.fault:
        case "link cut":
            lab.cut(host, host + 1)
        case "link cut one way":
            lab.cut(host, host + 1, "out")
        case "link loses":
            lab.loss(host, LOSS, host + 1)
        case "link loses one way":
            lab.loss(host, LOSS_ONE_WAY, host + 1, "out")
        case "host rate":
            lab.slow(host, BYTES_PER_SECOND)
        case "host delay":
            lab.delay(host, DELAY_SECONDS)
