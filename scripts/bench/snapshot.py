"""What snapshots cost training: ftrain against its rivals, in the same processes, in copies of the same bytes.

The unit is one ``copy_`` into warm shared memory of as many bytes as the rank has to copy, made by all ranks at once.

- *stall*: each of two ranks has 500 MB that no other rank has (a plain module and its AdamW: weight, two moments), and
  a forward and backward that take longer than the unit. What is measured for ftrain is the time in ``ctx.commit`` and
  in the wait before the optimizer's step; for the rivals the time in the call. The rivals save the same 500 MB per rank
  to tmpfs. The same under DDP, where both ranks have the same state and ftrain has each copy its half.
- *step time*: with a snapshot after every step, protected across two nodes, over without; one rank computing and the
  other core left to the daemons, and two ranks computing. For the first also what the step takes, without snapshots,
  while somebody else does plain copies on the other core: cores of one machine share memory and more.
- *frozen*: what a snapshot copies, codes and sends of a state of which one hundredth is trained.
- *python*: the training thread's time in a commit of 2,000 small tensors.
- *restore*: from this node's memory into new objects.

A round takes the slower rank, as a step does; figures are medians of rounds. With ``--device cuda`` the stall and the
step time are those of state on a GPU (one rank); without a GPU these rows are left out, and a line says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from common import CLEAN_TIMEOUT_SECONDS, ROOT, Report, median, parser
from job import MARK, Job, JobFailed, mark_session
from leftovers import SHARED_MEMORY, shared_memory_entries, wait_until_clean

WORKER = ROOT / "scripts" / "bench" / "snapshot_worker.py"
NODES = 2
COMMIT_TIMEOUT_SECONDS = 120.0
PROTECT_TIMEOUT_SECONDS = 30.0
JOB_TIMEOUT_SECONDS = 600.0
RIVALS = {
    "torch_save": "torch.save",
    "dcp_save": "DCP save",
    "dcp_async_save": "DCP async_save",
    "dcp_async_save_process": "DCP async_save, process",
    "dcp_async_save_cached": "DCP async_save, cached staging",
    "torchsnapshot": "torchsnapshot async_take",
}
Rows = list[dict[str, float]]


def measure(folder: Path, kind: str, options: list[str], *, goes: int, nodes: int = NODES) -> Rows:
    """One job of so many nodes with a rank each; rounds of the slower rank. ``goes``: how often it waits to go on."""
    folder.mkdir()
    flags = ["--local-nodes", str(nodes), "--nproc-per-node", "1", "--snapshot-every", "1"]
    with Job(f"bench-{folder.name}-{os.getpid()}", flags, WORKER, [kind, str(folder), *options], folder / "log") as job:
        for number in range(goes):
            wait_committed(job, folder, number, nodes)
            try:
                job.wait_for("protected", lambda s, n=number: s["snapshots"]["protected"] == n, PROTECT_TIMEOUT_SECONDS)  # type: ignore[misc]
                outcome = "protected"
            except JobFailed:
                if job.process.poll() is not None:
                    raise
                outcome = "skipped"
            (folder / "go.new").write_text(outcome)
            (folder / "go.new").rename(folder / f"go-{number}")
        job.wait_ended(JOB_TIMEOUT_SECONDS)
    by_rank = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(nodes)]
    return [{name: max(row[name] for row in rows) for name in rows[0]} for rows in zip(*by_rank, strict=False)]


def wait_committed(job: Job, folder: Path, number: int, nodes: int) -> None:
    """Wait until every rank is past its commit, and the step after it."""
    deadline = time.monotonic() + COMMIT_TIMEOUT_SECONDS
    while not all((folder / f"committed-{number}-{rank}").exists() for rank in range(nodes)):
        if job.process.poll() is not None or time.monotonic() > deadline:
            raise JobFailed(f"no commit of step {number}\n{job.tail()}")
        time.sleep(0.02)


def in_units(rows: Rows, name: str) -> float:
    """The figure as a multiple of the unit of the same round."""
    return median([row[name] / row["unit"] for row in rows])


def of(rows: Rows, name: str) -> float:
    return median([row[name] for row in rows])


def add_stall(made: Report, title: str, rows: Rows) -> None:
    made.add(f"{title}: unit, copy_ into warm shared memory", of(rows, "unit"), "s")
    made.add(f"{title}: forward and backward over the unit", in_units(rows, "forward_backward"), "ratio")
    made.add(f"{title}: ftrain commit over the unit", in_units(rows, "commit"), "ratio")
    made.add(f"{title}: ftrain wait before the step over the unit", in_units(rows, "wait"), "ratio")
    made.add(f"{title}: ftrain stall over the unit", in_units(rows, "ftrain"), "ratio", 0.15)
    found = {figure: in_units(rows, name) for name, figure in RIVALS.items() if name in rows[0]}
    for figure, value in found.items():
        made.add(f"{title}: {figure} over the unit", value, "ratio")
    if found:
        made.add(f"{title}: best rival over the unit", min(found.values()), "ratio")
    if "dcp_async_save_complete" in rows[0]:
        made.add(f"{title}: DCP async_save, complete", in_units(rows, "dcp_async_save_complete"), "ratio")


def add_steps(made: Report, title: str, rows: Rows, limit: float) -> None:
    made.add(f"{title}: step without snapshots", of(rows, "without"), "s")
    made.add(f"{title}: step time with over without", median([r["with"] / r["without"] for r in rows]), "ratio", limit)
    made.add(f"{title}: skipped, of the snapshots asked for", of(rows, "skipped"), "share")
    if "beside" in rows[0]:
        beside = median([r["beside"] / r["without"] for r in rows])
        made.add(f"{title}: beside copy_ on the other core, without snapshots, over without", beside, "ratio")


class Bench:
    """The parts of the benchmark, each adding its lines to a report."""

    def __init__(self, made: Report, folder: Path, sizes: list[str], rounds: int, *, quick: bool) -> None:
        self.made, self.folder, self.sizes, self.rounds, self.quick = made, folder, sizes, rounds, quick
        self.rest = ["--rest", "0.5"] if quick else []

    def run(self, name: str, kind: str, options: Sequence[str] = (), *, goes: int = 0, nodes: int = NODES) -> Rows:
        return measure(self.folder / name, kind, [*self.sizes, *options], goes=goes, nodes=nodes)

    def stall(self) -> None:
        add_stall(self.made, "own state", self.run("own", "stall", ["--rivals"], goes=self.rounds + 2))
        if not self.quick:
            add_stall(self.made, "DDP state", self.run("ddp", "stall", ["--replicated"], goes=self.rounds + 2))

    def steps(self) -> None:
        add_steps(self.made, "one rank computing", self.run("one", "steps", [*self.rest, "--idle"]), 1.05)
        add_steps(self.made, "two ranks computing", self.run("two", "steps", self.rest), 1.35)

    def frozen(self) -> None:
        rows = self.run("frozen", "frozen", goes=self.rounds + 2)
        for name in ("copied", "coded", "sent"):
            self.made.add(f"99 % frozen: {name} per snapshot over the state", of(rows, name), "ratio", 0.02)

    def python(self) -> None:
        rounds = 3 * self.rounds
        rows = self.run("python", "python", ["--rounds", str(rounds)], goes=rounds + 2)
        self.made.add("2,000 tensors: commit on the training thread", 1e3 * of(rows, "wall"), "ms", 2)
        self.made.add("2,000 tensors: the same, processor time", 1e3 * of(rows, "cpu"), "ms")

    def restore(self) -> None:
        rows = self.run("restore", "restore", goes=1)
        self.made.add("restore from local memory over the unit", in_units(rows, "restore"), "ratio", 1.5)

    def cuda(self) -> None:
        add_stall(self.made, "on a GPU", self.run("own", "stall", goes=self.rounds + 2, nodes=1))
        add_steps(self.made, "on a GPU", self.run("steps", "steps", self.rest, nodes=1), 1.01)


PARTS = {"cpu": ("stall", "steps", "frozen", "python", "restore"), "cuda": ("cuda",)}


def has_gpu() -> bool:
    """Asked of torch in a process of its own: this one does not load it."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


def main() -> None:
    options = parser("What snapshots cost training: ftrain and its rivals, in copies of the same bytes.")
    options.add_argument("--mib", type=int, help="state of each rank; default 480 (about 500 MB), quick 96")
    options.add_argument("--rounds", type=int, help="default 7, quick 2")
    options.add_argument("--batch", type=int, help="samples of a step; default 160, quick 128: about 0.5 s")
    options.add_argument("--device", choices=PARTS, default="cpu")
    options.add_argument("--only", choices=PARTS["cpu"], help="one part")
    args = options.parse_args()
    if args.device == "cuda" and not has_gpu():
        print("no CUDA device here: the rows of --device cuda are skipped")
        return
    mib, rounds = args.mib or (96 if args.quick else 480), args.rounds or (2 if args.quick else 7)
    batch = args.batch or (128 if args.quick else 160)
    mark, before = mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    state = f"{mib * 2**20 / 1e6:.0f} MB of state per rank"
    made = Report(f"Snapshots, nodes of a rank each, {state}, {args.device} (median of {rounds})")
    sizes = ["--mib", str(mib), "--rounds", str(rounds), "--batch", str(batch), "--device", args.device]
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=SHARED_MEMORY) as tmpfs:
        os.environ["FTRAIN_HOME"] = str(Path(tmpfs) / "home")
        bench = Bench(made, Path(tmpfs), sizes, rounds, quick=args.quick)
        for part in PARTS[args.device]:
            if args.only in (None, part) or args.device == "cuda":
                getattr(bench, part)()
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    made.add("processes and shared memory left behind", len(left), "count", 0)
    made.write(args.json)
    print("\n".join(left), end="\n" if left else "")


if __name__ == "__main__":
    main()
