"""How long a fault stops training, ftrain against its rivals, and what being ready for it costs.

    .venv/bin/python scripts/bench/recovery.py [--quick] [--json FILE] [--only PART ...] [--sides SIDE ...]

*worker*: SIGKILL of one of four ranks, to the first new step of all. All sides train recovery_worker.py's model, in
turn, several rounds; faults come from outside, at random moments; a *new step* is one that no rank had done before
the fault, done after the ranks were started again. ftrain snapshots every step, with its defaults: new processes,
forked from the zygote; and with a standby on each node, where survivors stay in their processes. The rivals:

- torchrun: ``--max-restarts``, a checkpoint every step on tmpfs, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, without
  which torch 2.13 often does not recover at all (the keys in its agents' shared store carry no generation);
- Ray Train (rivals/ray_train.py) and torchft (rivals/torchft_ddp.py), where they are installed.

*stop*: SIGSTOP of a rank, which only the detector sees: what follows its verdict, on both of ftrain's rungs.

*node*: agent, daemon, worker and shared memory of a node are lost, with a spare at hand; against torchrun's
``--nnodes 3:4``, which has no spares and goes on with three (rivals/torchrun_nodes.py), with its tightest settings and,
once, with its defaults. *launch* and *idle*: recovery_costs.py.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import CLEAN_TIMEOUT_SECONDS, Report, median, parser
from job import MARK, Json, mark_session
from leftovers import SHARED_MEMORY, marked_processes, shared_memory_entries, wait_until_clean
from recovery_costs import idle, launches
from recovery_faults import DEFAULTS, OURS, STAYING, TIGHT, Campaign, Fault
from rivals.commands import RANKS, RIVALS

PARTS = ("worker", "stop", "node", "launch", "idle")
RUNGS = {"ftrain": "new processes", STAYING: "same processes"}
TITLES = {"worker": "worker killed", "stop": "worker stopped", "node": "node lost"}
RATIOS = (
    ("worker", STAYING, "torchrun", 0.05),
    ("worker", "ftrain", "torchrun", 0.08),
    ("worker", STAYING, "Ray Train", None),
    ("worker", STAYING, "torchft", None),
    ("node", "ftrain", TIGHT, 0.2),
    ("node", "ftrain", DEFAULTS, 0.05),
)
"""Part, side, rival, limit."""
PHASES = ("decided", "formed", "restored", "first_step")


def seconds(faults: Sequence[Fault]) -> list[float]:
    return [fault.seconds for fault in faults]


def add_faults(made: Report, faults: dict[tuple[str, str], list[Fault]]) -> None:
    """What was measured of each part and side, and how they compare."""
    limits = {("worker", STAYING): 0.4, ("worker", "ftrain"): 0.6, ("node", "ftrain"): 1.0}
    for (part, side), mine in faults.items():
        title = f"{TITLES[part]}, {side}"
        made.add(title, median(seconds(mine)), "s", limits.get((part, side)))
        made.add(f"{title}, worst of {len(mine)}", max(seconds(mine)), "s")
        if part == "stop":
            made.add(f"{title}: from the first sign", median([fault.after_detection for fault in mine]), "s", 0.5)
        made.add(f"{title}: steps done again, most", max(fault.recovery.done_again for fault in mine), "count")
        if without := max(fault.recovery.without for fault in mine):
            made.add(f"{title}: steps without the lost rank, most", without, "count")
            made.add(f"{title}: until the others went on", median([fault.others_seconds for fault in mine]), "s")
        if side in OURS:
            add_incidents(
                made,
                title,
                "another node" if part == "node" else RUNGS[side],
                [fault.incident for fault in mine if fault.incident is not None],
            )
    for part, side, rival, limit in RATIOS:
        if (part, side) in faults and (part, rival) in faults:
            ratio = median(seconds(faults[part, side])) / median(seconds(faults[part, rival]))
            made.add(f"{TITLES[part]}, {side} over {rival}", ratio, "ratio", limit)


def add_incidents(made: Report, title: str, rung: str, incidents: Sequence[Json]) -> None:
    """What ftrain says of its own faults."""
    made.add(f"{title}: sealed steps lost", sum(incident["steps_lost"] for incident in incidents), "count", 0)
    made.add(f"{title}: on another rung", sum(incident["rung"] != rung for incident in incidents), "count", 0)
    times = [incident["timeline"] for incident in incidents]
    for phase in PHASES:
        if passed := [time[phase] - time["detected"] for time in times if time[phase]]:
            made.add(f"{title}: first sign until {phase.replace('_', ' ')}", median(passed), "s")


def add_launch(made: Report, folder: Path, rounds: int) -> None:
    ours, theirs = launches(folder, rounds)
    for what, mine, its, limit in (
        ("first user line", ours.first_line, theirs.first_line, 1.1),
        ("torch imported", ours.torch_imported, theirs.torch_imported, None),
        ("a model in DDP", ours.ddp_made, theirs.ddp_made, None),
    ):
        made.add(f"launcher start to {what}, ftrain", mine, "s")
        made.add(f"launcher start to {what}, torchrun", its, "s")
        made.add(f"launcher start to {what}, ftrain over torchrun", mine / its, "ratio", limit)


def add_idle(made: Report, folder: Path, seconds_each: float) -> None:
    used = idle(f"bench-idle-{os.getpid()}", folder, seconds_each)
    for what, use in used.items():
        made.add(f"idle {what}: share of a core", 100 * use.cores, "%")
        made.add(f"idle {what}: resident", use.resident_bytes / 1e6, "MB")
    made.add("idle, all three: share of a core", 100 * sum(use.cores for use in used.values()), "%", 2)
    resident = used["agent"].resident_bytes + used["daemon"].resident_bytes
    made.add("idle agent and daemon: resident, arena aside", resident / 1e6, "MB", 150)


def left_out(names: Sequence[str]) -> dict[str, str]:
    """Those of the sides that cannot run, and a line for each that says why."""
    missing = {rival.name: rival.missing() for rival in RIVALS if rival.name in names}
    return {
        name: f"skipped: {name}: not installed: {', '.join(packages)} (pip install 'ftrain[bench]')"
        for name, packages in missing.items()
        if packages
    }


def main() -> None:
    every = [*OURS, *(rival.name for rival in RIVALS)]
    options = parser("Time from a fault to the first new step of all ranks, ftrain against its rivals.")
    options.add_argument("--rounds", type=int, help="default 5, quick 1")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options.add_argument("--sides", nargs="+", choices=every, default=every, metavar="SIDE", help=", ".join(every))
    args = options.parse_args()
    rounds, count = args.rounds or (1 if args.quick else 5), 1 if args.quick else 2
    skipped = left_out(args.sides)
    print("\n".join([f"seed {args.seed}", *skipped.values()]), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # jobs are ended on the way out
    chance, mark, before = random.Random(args.seed), mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    made = Report(f"Faults of {RANKS} ranks, to the first new step of all of them (median)")
    with tempfile.TemporaryDirectory(prefix="recovery-", dir=SHARED_MEMORY) as tmpfs:
        os.environ["FTRAIN_HOME"] = str(Path(tmpfs) / "home")
        sides = [side for side in args.sides if side not in skipped]
        campaign = Campaign(Path(tmpfs), count, chance)
        for number in range(rounds):
            campaign.round(args.only, sides, with_defaults=number == 0 and not args.quick)
        add_faults(made, campaign.found)
        costs: dict[str, Callable[[Path], None]] = {
            "launch": lambda folder: add_launch(made, folder, 1 + rounds),
            "idle": lambda folder: add_idle(made, folder, 5.0 if args.quick else 30.0),
        }
        for part, cost in costs.items():
            if part in args.only:
                campaign.attempt(part, partial(cost, Path(tmpfs) / part))
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, mark):
        os.kill(pid, signal.SIGKILL)
    made.add("jobs and parts that failed", len(campaign.failed), "count", 0)
    made.add("processes and shared memory left behind", len(left), "count", 0)
    made.write(args.json)
    for line in (*left, *skipped.values(), *(f"failed: {what}" for what in campaign.failed), *campaign.took()):
        print(line)


if __name__ == "__main__":
    main()
