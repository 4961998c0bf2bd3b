"""The promise, shown: a run that loses a worker and then a node ends with the same bits as a run that loses nothing.

Two jobs train examples/char_gpt.py on four emulated nodes. The first is left alone. In the second a worker gets
a real SIGKILL, and later a whole node dies: agent, daemon, worker, and its shared memory with it. Every wait is for
an event seen through ``ftrain status --json``, every fault is checked to have happened, and the demo exits 0 only
if all of what it claims was seen to hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from job import MARK, Job, JobFailed, Json, all_ranks_at, is_running, mark_session, node_of, node_pids, ranks, wait_gone
from leftovers import SHARED_MEMORY, shared_memory_entries, wait_until_clean
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "char_gpt.py"
NODES = 4
KILLED_RANK, LOST_RANK = 2, 1
START_TIMEOUT_SECONDS = 90.0
TRAIN_TIMEOUT_SECONDS = 120.0
RECOVERY_TIMEOUT_SECONDS = 60.0
CLEAN_TIMEOUT_SECONDS = 15.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A fault and how the job came out of it."""

    fault: str
    killed_at: float
    """Unix seconds."""
    incident: Json
    steps_lost_max: int
    """What the promise allows to be run again."""

    @property
    def seconds(self) -> float:
        """From the kill, by this process's clock, to the first new step of all ranks."""
        return float(self.incident["timeline"]["first_step"]) - self.killed_at


class Claims:
    """What was claimed, and whether it was seen to hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, claim: str, held: bool) -> None:
        console.print(f"  [green]✓[/] {claim}" if held else f"  [bold red]✗ {claim}[/]")
        if not held:
            self.failed.append(claim)


def main() -> int:
    args = parse_arguments()
    home = Path(args.keep or tempfile.mkdtemp(prefix="ftrain-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    os.environ["FTRAIN_HOME"] = str(home / "state")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mark, memory_before, claims = mark_session(), shared_memory_entries(), Claims()
    try:
        reference = train_undisturbed(home, args.steps)
        survivor, recoveries = train_and_break(home, args.steps, claims)
    except JobFailed as error:
        console.print(f"\n[bold red]The demo failed:[/] {escape(str(error))}")
        recoveries, reference, survivor = [], {}, {}
        claims.failed.append("the demo ran to its end")
    left = wait_until_clean(MARK, mark, memory_before, CLEAN_TIMEOUT_SECONDS)
    if recoveries:
        report(recoveries, reference, survivor, claims)
    claims.check("no process and no shared memory left" + "".join(f"\n      {line}" for line in left), not left)
    if args.keep is None and not claims.failed:
        shutil.rmtree(home, ignore_errors=True)
    else:
        console.print(f"logs and state: {home}", soft_wrap=True)
    return 1 if claims.failed else 0


def train_undisturbed(home: Path, steps: int) -> Json:
    """The reference: what its final parameters hash to."""
    console.rule("1. Four nodes, no faults")
    with start(home, "reference", steps, spares=0) as job:
        watch_until(job, 1, START_TIMEOUT_SECONDS)
        watch_to_the_end(job)
    return result(home, "reference")


def train_and_break(home: Path, steps: int, claims: Claims) -> tuple[Json, list[Recovery]]:
    """The same training with a spare node and two faults."""
    console.rule("2. The same, with one spare node: a worker is killed, then a node is lost")
    with start(home, "faults", steps, spares=1) as job:
        watch_until(job, 1, START_TIMEOUT_SECONDS)
        recoveries = [kill_worker(job, steps // 5, claims), lose_node(job, steps // 2, claims)]
        watch_to_the_end(job)
        numbers = [i["number"] for i in job.incidents()]
    claims.check(f"the job tells of two incidents, and of no other ({len(numbers)})", len(numbers) == 2)
    return result(home, "faults"), recoveries


def start(home: Path, name: str, steps: int, spares: int) -> Job:
    flags = ["--local-nodes", str(NODES), "--nproc-per-node", "1", "--spares", str(spares), "--snapshot-every", "1"]
    training = ["--steps", str(steps), "--log-every", "25", "--hash-file", str(home / f"{name}.json")]
    (home / f"{name}.json").unlink(missing_ok=True)
    flags += ["--log-dir", str(home / name)]
    return Job(f"demo-{name}-{os.getpid()}", flags, SCRIPT, training, home / f"{name}.log")


def result(home: Path, name: str) -> Json:
    """What the script says of its final parameters."""
    found: Json = json.loads((home / f"{name}.json").read_text())
    return found


def kill_worker(job: Job, step: int, claims: Claims) -> Recovery:
    """A real SIGKILL, from outside, to one worker."""
    worker = ranks(watch_until(job, step, TRAIN_TIMEOUT_SECONDS))[KILLED_RANK]
    console.print(f"[bold yellow]SIGKILL[/] to rank {KILLED_RANK}, pid {worker['pid']}, on {worker['node']}")
    killed_at = time.time()
    os.kill(worker["pid"], signal.SIGKILL)
    claims.check(f"worker {worker['pid']} is dead", not wait_gone([worker["pid"]], timeout_seconds=5.0))
    incident = job.wait_for_incident(after=0, timeout_seconds=RECOVERY_TIMEOUT_SECONDS)
    suspects = [suspect["rank"] for suspect in incident["suspects"]]
    claims.check(f"ftrain names rank {KILLED_RANK} (named: {suspects})", suspects == [KILLED_RANK])
    return recovered(Recovery(fault="worker killed", killed_at=killed_at, incident=incident, steps_lost_max=0))


def lose_node(job: Job, step: int, claims: Claims) -> Recovery:
    """Agent, daemon and worker of one node killed at once, and its shared memory gone with them."""
    node = node_of(watch_until(job, step, TRAIN_TIMEOUT_SECONDS), LOST_RANK)
    name, memory = node["name"], SHARED_MEMORY / f"ftrain-{job.name}" / node["name"]
    had_memory = memory.exists()
    console.print(f"[bold yellow]kill-node[/] {name}: agent, daemon and worker {node_pids(node)}, and {memory}")
    killed_at = job.lose_node(node)
    claims.check("agent, daemon and worker are dead", not any(map(is_running, node_pids(node))))
    incident = job.wait_for_incident(after=1, timeout_seconds=RECOVERY_TIMEOUT_SECONDS)
    claims.check("the node's shared memory is gone", had_memory and not memory.exists())
    suspects = sorted({suspect["node"] for suspect in incident["suspects"]})
    claims.check(f"ftrain names {name} (named: {suspects})", suspects == [name])
    running = job.wait_for("running again", lambda s: s["state"] == "running", RECOVERY_TIMEOUT_SECONDS)
    heir = node_of(running, LOST_RANK)["name"]
    claims.check(f"rank {LOST_RANK} trains on {heir} now", heir != name)
    return recovered(Recovery(fault="node lost", killed_at=killed_at, incident=incident, steps_lost_max=1))


def recovered(recovery: Recovery) -> Recovery:
    resumed = recovery.incident["resumed_from"]
    console.print(f"[green]recovered[/] in {recovery.seconds:.2f} s from snapshot {resumed}, still training")
    return recovery


def watch_until(job: Job, step: int, timeout_seconds: float) -> Json:
    """Wait for all ranks to have committed ``step``, telling how it goes; the status by then."""
    told = -1

    def reached(status: Json) -> bool:
        nonlocal told
        told = tell(job, status, told)
        return all_ranks_at(status, step, NODES)

    return job.wait_for(f"at step {step}", reached, timeout_seconds)


def watch_to_the_end(job: Job) -> None:
    """Wait for the job's own, good end, telling how it goes."""
    told = -1
    deadline = time.monotonic() + TRAIN_TIMEOUT_SECONDS
    while job.process.poll() is None and time.monotonic() < deadline:
        if (status := job.status()) is not None:
            told = tell(job, status, told)
        time.sleep(0.2)
    job.wait_ended(timeout_seconds=0.1)
    console.print(f"  [dim]{escape(job.tail(1))}[/]", overflow="ellipsis", no_wrap=True)


def tell(job: Job, status: Json, told: int) -> int:
    """One line each 50 steps: step, generation, levels, and the last thing that a worker said."""
    step = max((rank["step"] or 0 for rank in ranks(status).values()), default=0)
    if step // 50 <= told // 50:
        return told
    sealed, protected = status["snapshots"]["sealed"], status["snapshots"]["protected"]
    line = f"  step {step:4d}  generation {status['generation']}  sealed {sealed}  protected {protected}"
    console.print(line, f"[dim]{escape(job.tail(1))}[/]", overflow="ellipsis", no_wrap=True)
    return step


def report(recoveries: list[Recovery], reference: Json, survivor: Json, claims: Claims) -> None:
    console.rule("3. What happened")
    table = Table("incident", "kind", "sealed steps lost", "fault to first new step", "resumed from snapshot")
    for recovery in recoveries:
        row = recovery.incident
        lost, resumed = str(row["steps_lost"]), str(row["resumed_from"])
        table.add_row(f"{row['number']}: {recovery.fault}", row["kind"], lost, f"{recovery.seconds:.2f} s", resumed)
    console.print(table)
    console.print(f"final parameters, no faults:   sha256 {reference['sha256']}", soft_wrap=True)
    console.print(f"final parameters, two faults:  sha256 {survivor['sha256']}", soft_wrap=True)
    claims.check("bit for bit the same", reference == survivor)
    for recovery in recoveries:
        limit = recovery.steps_lost_max
        claims.check(f"{recovery.fault}: at most {limit} sealed steps lost", recovery.incident["steps_lost"] <= limit)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train, break things, survive, and say what happened.")
    parser.add_argument("--steps", type=int, default=400, help="of each of the two runs; at least 100")
    parser.add_argument("--keep", metavar="DIR", help="keep logs and state here (a failed demo keeps them anyway)")
    args = parser.parse_args()
    if args.steps < 100:
        parser.error("--steps: at least 100, so that there is time for two faults")
    return args


if __name__ == "__main__":
    sys.exit(main())
