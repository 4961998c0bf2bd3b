"""How long a fault stops training: from the kill to the first new step of all four ranks, ftrain against torchrun.

Both sides train recovery_worker.py, in turn, several rounds. torchrun has
``--max-restarts``, a checkpoint every step on tmpfs, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without which torch
2.13 often does not recover at all (the keys in its agents' shared store carry no generation). ftrain snapshots
every step, with its defaults: new processes, forked from the zygote; and with a standby on each node, where survivors
stay in their processes. Faults come from outside, at random moments; a *new step* is one that no rank had finished
before the fault, done after the ranks were started again. The node that is killed loses agent, daemon, worker and
shared memory, with a spare at hand; it too is compared with torchrun's lost worker.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from common import CLEAN_TIMEOUT_SECONDS, ROOT, Report, median, parser
from job import MARK, STOP_TIMEOUT_SECONDS, Job, JobFailed, mark_session, node_of
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, wait_until_clean

WORKER = ROOT / "scripts" / "bench" / "recovery_worker.py"
RANKS = 4
WARM_STEPS = 10
RECOVERY_TIMEOUT_SECONDS = 120.0
STANDBY_SECONDS = 1.0
"""A lost rank's standby has been replaced by then."""
PHASES = ("decided", "formed", "restored", "first_step")


class Line(NamedTuple):
    """A rank's note of a finished step."""

    step: int
    time: float
    pid: int
    restarts: int
    """How often the ranks had been started again by then."""


class Notes:
    """What the ranks wrote down, read from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, rank: int) -> list[Line]:
        """The rank's finished steps, oldest first; of all its processes."""
        path = self.folder / f"rank-{rank}"
        text = path.read_text() if path.exists() else ""
        fields = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
        return [Line(int(step), float(when), int(pid), int(count)) for step, when, pid, count in fields]

    def last(self) -> dict[int, Line]:
        return {rank: self.of(rank)[-1] for rank in range(RANKS)}

    def wait_warm(self, alive: Callable[[], bool]) -> None:
        """Wait until every rank has done WARM_STEPS steps since it was started."""
        wait_for("warm", alive, lambda: all(self._steps_of_last_start(rank) >= WARM_STEPS for rank in range(RANKS)))

    def _steps_of_last_start(self, rank: int) -> int:
        lines = self.of(rank)
        return sum(line.restarts == lines[-1].restarts for line in lines)

    def seconds_to_new_step(self, old: dict[int, Line], killed_at: float, alive: Callable[[], bool]) -> float:
        """From the fault until the last rank, started again, has finished its first new step."""
        firsts: dict[int, float] = {}

        def all_there() -> bool:
            lines = {rank: self.of(rank) for rank in range(RANKS)}
            done = max(line.step for rank in lines for line in lines[rank] if line.restarts == old[rank].restarts)
            for rank in lines:
                fresh = [line for line in lines[rank] if line.restarts > old[rank].restarts]
                if new := [line.time for line in fresh if line.step > done]:
                    firsts[rank] = min(new)
            return len(firsts) == RANKS

        wait_for("recovered", alive, all_there)
        return max(firsts.values()) - killed_at


def wait_for(what: str, alive: Callable[[], bool], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RECOVERY_TIMEOUT_SECONDS
    while not condition():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the job did not get {what}")
        time.sleep(0.02)


def kill_worker(notes: Notes, alive: Callable[[], bool], chance: random.Random) -> float:
    """SIGKILL a random rank at a random moment; seconds to the first new step."""
    notes.wait_warm(alive)
    time.sleep(chance.uniform(0.0, 0.3))
    old = notes.last()
    killed_at = time.time()
    os.kill(old[chance.randrange(RANKS)].pid, signal.SIGKILL)
    return notes.seconds_to_new_step(old, killed_at, alive)


def kill_node(job: Job, notes: Notes, alive: Callable[[], bool], chance: random.Random) -> float:
    """Lose a random rank's node; seconds to the first new step."""
    notes.wait_warm(alive)
    status = job.wait_for(
        "protected", lambda s: s["state"] == "running" and s["snapshots"]["protected"] is not None, 30
    )
    time.sleep(chance.uniform(0.0, 0.3))
    old = notes.last()
    killed_at = job.lose_node(node_of(status, chance.randrange(RANKS)))
    return notes.seconds_to_new_step(old, killed_at, alive)


def measure_ftrain(folder: Path, kills: int, chance: random.Random) -> tuple[list[float], float]:
    """Seconds of each killed worker, and of one killed node."""
    flags = ["--local-nodes", str(RANKS), "--nproc-per-node", "1", "--spares", "1", "--snapshot-every", "1"]
    with Job(f"bench-{folder.name}", flags, WORKER, ["ftrain", str(folder)], folder / "log") as job:
        notes, alive = Notes(folder), lambda: job.process.poll() is None
        try:
            workers = [kill_worker(notes, alive, chance) for _ in range(kills)]
            return workers, kill_node(job, notes, alive, chance)
        except (RuntimeError, JobFailed) as error:
            raise SystemExit(f"ftrain: {error}\n{job.tail()}") from error


def measure_in_process(folder: Path, kills: int, chance: random.Random) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of each killed worker, with a standby on each node; and of each phase, from the first sign to its end."""
    flags = ["--local-nodes", str(RANKS), "--nproc-per-node", "1", "--standby", "1", "--snapshot-every", "1"]
    with Job(f"bench-{folder.name}", flags, WORKER, ["ftrain", str(folder)], folder / "log") as job:
        notes, alive, seconds = Notes(folder), lambda: job.process.poll() is None, list[float]()
        try:
            for _ in range(kills):
                notes.wait_warm(alive)
                time.sleep(STANDBY_SECONDS)
                seconds.append(kill_worker(notes, alive, chance))
            found = job.incidents()
        except (RuntimeError, JobFailed) as error:
            raise SystemExit(f"ftrain --standby 1: {error}\n{job.tail()}") from error
    if any(incident["rung"] != "same processes" for incident in found):
        raise SystemExit(f"ftrain --standby 1: {[incident['rung'] for incident in found]}\n{job.tail()}")
    times = [incident["timeline"] for incident in found]
    return seconds, {phase: [t[phase] - t["detected"] for t in times if t[phase]] for phase in PHASES}


def measure_torchrun(folder: Path, kills: int, chance: random.Random) -> list[float]:
    """Seconds of each killed worker."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += ["--max-restarts", "100", str(WORKER), "torchrun", str(folder)]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return [kill_worker(Notes(folder), lambda: process.poll() is None, chance) for _ in range(kills)]
    except RuntimeError as error:
        raise SystemExit(f"torchrun: {error}\n{(folder / 'log').read_text()[-3000:]}") from error
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT_SECONDS)


def main() -> None:
    options = parser("Time from a fault to the first new step of all ranks, ftrain against torchrun.")
    options.add_argument("--rounds", type=int, help="default 3, quick 1")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options.add_argument("--torchrun-only", action="store_true", help="measure the rival alone")
    args = options.parse_args()
    rounds, kills = args.rounds or (1 if args.quick else 3), 2 if args.quick else 4
    print(f"seed {args.seed}")
    chance, mark, before = random.Random(args.seed), mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    workers: list[float] = []
    stayed: list[float] = []
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    nodes: list[float] = []
    rival: list[float] = []
    with tempfile.TemporaryDirectory(prefix="recovery-", dir=SHARED_MEMORY) as tmpfs:
        os.environ["FTRAIN_HOME"] = str(Path(tmpfs) / "home")
        for number in range(rounds):
            ours, theirs = Path(tmpfs) / f"ours-{os.getpid()}-{number}", Path(tmpfs) / f"theirs-{number}"
            warm = Path(tmpfs) / f"warm-{os.getpid()}-{number}"
            for folder in (ours, warm, theirs):
                folder.mkdir()
            if not args.torchrun_only:
                seconds, node = measure_ftrain(ours, kills, chance)
                workers, nodes = workers + seconds, [*nodes, node]
                print(f"ftrain: workers {[round(s, 2) for s in seconds]} s, node {node:.2f} s", flush=True)
                seconds, times = measure_in_process(warm, kills, chance)
                stayed += seconds
                for phase in PHASES:
                    phases[phase] += times[phase]
                print(f"ftrain --standby 1: workers {[round(s, 2) for s in seconds]} s", flush=True)
            rival += measure_torchrun(theirs, 1 if args.quick else 2, chance)
            print(f"torchrun: {[round(s, 2) for s in rival]} s", flush=True)
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, mark):
        os.kill(pid, signal.SIGKILL)
    report(workers, stayed, phases, nodes, rival, left).write(args.json)
    print("\n".join(left), end="\n" if left else "")


def report(
    workers: list[float],
    stayed: list[float],
    phases: dict[str, list[float]],
    nodes: list[float],
    rival: list[float],
    left: list[str],
) -> Report:
    made = Report(f"From SIGKILL to the first new step of {RANKS} ranks (median)")
    made.add("torchrun, worker killed", median(rival), "s")
    if workers:
        made.add("ftrain, worker killed", median(workers), "s")
        made.add("ftrain, worker killed, slowest", max(workers), "s")
        made.add("ftrain --standby 1, worker killed", median(stayed), "s", 0.4)
        made.add("ftrain --standby 1, worker killed, slowest", max(stayed), "s")
        for phase in PHASES:
            made.add(f"    of it from the first sign until {phase.replace('_', ' ')}", median(phases[phase]), "s")
        made.add("ftrain, node killed, spare at hand", median(nodes), "s")
        made.add("worker killed, ftrain over torchrun", median(workers) / median(rival), "ratio", 0.15)
        made.add("worker killed, ftrain --standby 1 over torchrun", median(stayed) / median(rival), "ratio", 0.05)
        made.add("node killed, ftrain over torchrun's worker", median(nodes) / median(rival), "ratio", 0.25)
    made.add("processes and shared memory left behind", len(left), "count", 0)
    return made


if __name__ == "__main__":
    main()
