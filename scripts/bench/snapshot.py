"""How long a snapshot stops training, in copies of the same bytes; ftrain against DCP, in the same processes.

The unit is one ``copy_`` into warm shared memory of as many bytes as the rank has to copy, made by all ranks at once.

- *own state*: each of two ranks has 500 MB that no other rank has (a plain module and its AdamW: weight, two
  moments), and the unit is all of it. The rivals save the same 500 MB per rank to tmpfs.
- *replicated state*: both ranks have the same 500 MB under DDP; ftrain has each copy its half, and the unit is
  that half.

A round takes the slower rank, as a step does; figures are medians of rounds. What is measured for ftrain is the
time in ``ctx.commit``; for the rivals the time in the call. The daemons' work afterwards (checksums, parity,
sending) is waited for and told as a row of its own.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from common import CLEAN_TIMEOUT_SECONDS, ROOT, Report, median, parser
from job import MARK, Job, JobFailed, mark_session
from leftovers import SHARED_MEMORY, shared_memory_entries, wait_until_clean

WORKER = ROOT / "scripts" / "bench" / "snapshot_worker.py"
RANKS = 2
COMMIT_TIMEOUT_SECONDS = 120.0
PROTECT_TIMEOUT_SECONDS = 30.0


@dataclass
class Measured:
    """Rounds of the slower rank, and how long the daemons took after each commit."""

    rounds: list[dict[str, float]]
    protect_seconds: list[float] = field(default_factory=list)

    def seconds(self, name: str) -> float:
        return median([row[name] for row in self.rounds])

    def in_units(self, name: str) -> float:
        """The figure as a multiple of the unit of the same round."""
        return median([row[name] / row["unit"] for row in self.rounds])


def measure(folder: Path, mib: int, rounds: int, options: list[str]) -> Measured:
    """One job of two nodes with a rank each, told when to go on."""
    folder.mkdir()
    flags = ["--local-nodes", str(RANKS), "--nproc-per-node", "1", "--snapshot-every", "1"]
    args = [str(folder), "--mib", str(mib), "--rounds", str(rounds), *options]
    protect = []
    with Job(f"bench-{folder.name}-{os.getpid()}", flags, WORKER, args, folder / "log") as job:
        for number in range(rounds + 1):
            wait_committed(job, folder, number)
            start = time.monotonic()
            try:
                job.wait_for("protected", lambda s, n=number: s["snapshots"]["protected"] == n, PROTECT_TIMEOUT_SECONDS)  # type: ignore[misc]
                protect.append(time.monotonic() - start)
                outcome = "protected"
            except JobFailed:
                if job.process.poll() is not None:
                    raise
                outcome = "skipped"
            (folder / "go.new").write_text(outcome)
            (folder / "go.new").rename(folder / f"go-{number}")
        job.wait_ended(COMMIT_TIMEOUT_SECONDS)
    by_rank = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    slower = [{name: max(row[name] for row in rows) for name in rows[0]} for rows in zip(*by_rank, strict=True)]
    return Measured(slower, protect)


def wait_committed(job: Job, folder: Path, number: int) -> None:
    """Wait until every rank is out of its commit."""
    deadline = time.monotonic() + COMMIT_TIMEOUT_SECONDS
    while not all((folder / f"committed-{number}-{rank}").exists() for rank in range(RANKS)):
        if job.process.poll() is not None or time.monotonic() > deadline:
            raise JobFailed(f"no commit of step {number}\n{job.tail()}")
        time.sleep(0.02)


def report(own: Measured, replicated: Measured, left: list[str]) -> Report:
    megabytes = own.rounds[0]["bytes"] / 1e6
    made = Report(f"Stall per snapshot, {RANKS} ranks, {megabytes:.0f} MB of state each (median of {len(own.rounds)})")
    made.add("unit: copy_ into warm shared memory", own.seconds("unit"), "s")
    made.add("ftrain commit", own.seconds("ftrain"), "s")
    made.add("ftrain protected after", median(own.protect_seconds[1:] or own.protect_seconds), "s")
    made.add("ftrain commit over the unit", own.in_units("ftrain"), "ratio", 1.5)
    for name, figure in [
        ("torch_save", "torch.save"),
        ("dcp_save", "DCP save"),
        ("dcp_async_save", "DCP async_save"),
        ("dcp_async_save_cached", "DCP async_save, cached staging"),
        ("dcp_async_save_complete", "DCP async_save, complete"),
    ]:
        made.add(f"{figure} over the unit", own.in_units(name), "ratio")
    made.add("DDP state: unit, one rank's half", replicated.seconds("unit"), "s")
    made.add("DDP state: ftrain commit", replicated.seconds("ftrain"), "s")
    made.add("DDP state: ftrain commit over the unit", replicated.in_units("ftrain"), "ratio", 1.5)
    made.add("processes and shared memory left behind", len(left), "count", 0)
    return made


def main() -> None:
    options = parser("Stall per snapshot: ftrain and DCP, in copies of the same bytes into warm shared memory.")
    options.add_argument("--mib", type=int, help="state of each rank; default 480 (about 500 MB), quick 120")
    options.add_argument("--rounds", type=int, help="default 7, quick 3")
    args = options.parse_args()
    mib, rounds = args.mib or (120 if args.quick else 480), args.rounds or (3 if args.quick else 7)
    mark, before = mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=SHARED_MEMORY) as tmpfs:
        os.environ["FTRAIN_HOME"] = str(Path(tmpfs) / "home")
        own = measure(Path(tmpfs) / "own", mib, rounds, ["--rivals"])
        replicated = measure(Path(tmpfs) / "replicated", mib, rounds, ["--replicated"])
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    report(own, replicated, left).write(args.json)
    print("\n".join(left), end="\n" if left else "")


if __name__ == "__main__":
    main()
