"""The fault campaign: what is said of each fault of real jobs, how soon, and of what is none.

Each trial is a job of 4 or 8 ranks in one of three shapes (``faults/trainee.py``) with one fault at a random rank and
step; faults of links are made between hosts in network namespaces, which needs root. All are judged by the incidents
that the job leaves, and by what its ranks wrote down. At last a job without any fault trains while other processes
load the machine: nothing may be said of it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from common import CLEAN_TIMEOUT_SECONDS, Report, parser
from detect_cases import CASES, SAID, SHAPES, Case, Judgement, Trial, judge
from detect_jobs import HOSTS, NODES, PER_NODE, close, incidents, neighbours, run, train, world_size
from job import MARK, mark_session
from leftovers import marked_processes, shared_memory_entries, wait_until_clean
from rich.console import Console
from rich.table import Table

QUIET_STEPS, QUIET_STEPS_QUICK = 10_000, 500
QUIET_STEP_SECONDS = 0.01
QUIET_STEP_SECONDS_MAX = 0.5
"""Where eight ranks and their neighbours share two processors."""
NEIGHBOURS = 2
FIRST_STEP, LAST_STEP = 30, 60
"""Faults strike between."""

Judged = list[tuple[Trial, Judgement]]


def parse() -> argparse.Namespace:
    options = parser("What the detector says of faults, and how soon.")
    names = [case.name for case in CASES]
    options.add_argument(
        "--only", nargs="+", choices=[*names, "quiet"], metavar="CASE", help=f"of {', '.join(names)}, quiet"
    )
    options.add_argument("--shape", choices=SHAPES, help="one shape instead of all")
    options.add_argument("--rounds", type=int, default=1, help="of each case and shape; default 1")
    options.add_argument("--quiet-steps", type=int, help="default 10000, quick 500")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options.add_argument("--keep", type=Path, metavar="FOLDER", help="what the jobs leave goes here, and stays")
    return options.parse_args()


def main() -> None:
    args = parse()
    print(f"seed {args.seed}")
    mark, before = mark_session(), shared_memory_entries()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="detect-") as temporary:
        folder = args.keep or Path(temporary)
        judged, undone = campaign(args, folder)
        quiet = quiet_run(args, folder) if args.only is None or "quiet" in args.only else None
    close()
    left = wait_until_clean(MARK, mark, before, CLEAN_TIMEOUT_SECONDS)
    for pid in marked_processes(MARK, mark):
        os.kill(pid, signal.SIGKILL)
    Console().print(matrix(judged))
    made = report(judged, quiet, left)
    made.add("trials that could not be made", undone, "count", 0)
    made.write(args.json)
    if args.json is not None:
        add_trials(args.json, judged)
    print("\n".join(left), end="\n" if left else "")


def trials(args: argparse.Namespace) -> Iterator[Trial]:
    """The cases that were asked for, each in its shapes, at random ranks and steps."""
    chance = random.Random(args.seed)
    shapes = [args.shape] if args.shape else ["dp"] if args.quick else SHAPES
    for case in CASES:
        wanted = case.name in args.only if args.only is not None else case.quick or not args.quick
        for shape in shapes if wanted else ():
            for _ in range(args.rounds if shape in case.shapes else 0):
                # Host 1 has the controller; a link is that to the next host.
                rank = chance.randrange(1, HOSTS - 1) if case.on_hosts else chance.randrange(world_size(shape, case))
                yield Trial(case, shape, rank, chance.randrange(FIRST_STEP, LAST_STEP))


def campaign(args: argparse.Namespace, folder: Path) -> tuple[Judged, int]:
    """Run all trials, one after the other; what came of them, and how many could not be made."""
    judged: Judged = []
    undone = 0
    for number, trial in enumerate(trials(args)):
        what = f"{trial.case.name} in {trial.shape}, {_culprit(trial)}, step {trial.at_step}"
        try:
            outcome = run(trial, folder / f"{number}")
            found = judge(trial, outcome)
        except (OSError, RuntimeError, AssertionError) as error:
            undone += 1
            print(f"{what}: NOT MADE: {error}", flush=True)
            continue
        judged.append((trial, found))
        seconds = "" if found.seconds is None else f" after {found.seconds:.2f} s"
        print(f"{what}: {'right' if found.right else 'WRONG'}: {found.said}{seconds}: {found.sentence}", flush=True)
        if found.false:
            print(f"  and {found.false} incidents that accuse others: {[i['reason'] for i in outcome.incidents]}")
    return judged, undone


def quiet_run(args: argparse.Namespace, folder: Path) -> tuple[int, int]:
    """Train without a fault on a busy machine: steps, and what was said nevertheless."""
    shapes = [args.shape] if args.shape else ["dp"] if args.quick else list(SHAPES)
    steps = args.quiet_steps or (QUIET_STEPS_QUICK if args.quick else QUIET_STEPS)
    said = 0
    for shape in shapes:
        arguments = ["--shape", shape, "--steps", str(steps // len(shapes)), "--step-seconds", str(QUIET_STEP_SECONDS)]
        with neighbours(NEIGHBOURS, args.seed % 2**31):
            exit_code = train(folder / f"quiet-{shape}", shape, (), arguments, QUIET_STEP_SECONDS_MAX * steps)
        found = incidents(folder / f"quiet-{shape}" / "home")
        print(
            f"quiet in {shape}: exit code {exit_code}, {len(found)} incidents {[i['reason'] for i in found]}",
            flush=True,
        )
        said += len(found) + (exit_code != 0)
    return steps, said


def _culprit(trial: Trial) -> str:
    if not trial.case.on_hosts:
        return f"rank {trial.rank}"
    return f"link {trial.rank} to {trial.rank + 1}" if trial.case.names_link else f"host {trial.rank}"


def matrix(judged: Judged) -> Table:
    """Fault by what was said, and how often that was right in kind and suspect."""
    counts = collections.Counter((trial.case.name, found.said) for trial, found in judged)
    said = [kind for kind in SAID if any(counts[case.name, kind] for case in CASES)]
    table = Table("fault", *said, "right", "of", title="What was said of each fault")
    for case in CASES:
        mine = [found for trial, found in judged if trial.case is case]
        if mine:
            cells = [str(counts[case.name, kind] or "") for kind in said]
            table.add_row(case.name, *cells, str(sum(found.right for found in mine)), str(len(mine)))
    return table


def report(judged: Judged, quiet: tuple[int, int] | None, left: list[str]) -> Report:
    made = Report(f"Faults of jobs of {NODES['dp'] * PER_NODE} to {NODES['dp_tp'] * PER_NODE} ranks")
    for case in CASES:
        if mine := [found for trial, found in judged if trial.case is case]:
            _add(made, case, mine)
    made.add("incidents that accuse somebody else", sum(found.false for _, found in judged), "count", 0)
    if quiet is not None:
        made.add(f"said in {quiet[0]} quiet steps", quiet[1], "count", 0)
    made.add("processes and shared memory left behind", len(left), "count", 0)
    return made


def _add(made: Report, case: Case, mine: list[Judgement]) -> None:
    made.add(
        f"{case.name}: not named right",
        sum(not found.right for found in mine),
        "count",
        case.missed_max * len(mine) // 10,
    )
    right = [found for found in mine if found.right]
    if seconds := [found.seconds for found in right if found.seconds is not None]:
        made.add(f"{case.name}: fault to verdict, slowest", max(seconds), "s", case.seconds_max)
    if case.steps_max is not None and (steps := [found.steps for found in right if found.steps is not None]):
        made.add(f"{case.name}: fault to verdict, slowest", max(steps), "steps", case.steps_max)
    recovered = [found.recovered_seconds for found in right if found.recovered_seconds is not None]
    if recovered:
        made.add(f"{case.name}: fault to the first new step, slowest", max(recovered), "s")


def add_trials(file: Path, judged: Judged) -> None:
    """Write what was said of each trial beside the rows."""
    content = json.loads(file.read_text())
    content["trials"] = [
        {"case": t.case.name, "shape": t.shape, "rank": t.rank, "at_step": t.at_step, **asdict(found)}
        for t, found in judged
    ]
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
