"""``ftrain inject``: break something on purpose, to see the job survive it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json
from ftrain_launcher.errors import UsageError

FAULTS = ("kill-worker", "kill-node", "kill-agent", "kill-daemon")


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Break something, with a real SIGKILL: a worker, an agent, a daemon, or a node with its memory."
    parser = add_command(commands, "inject", inject, about)
    parser.add_argument("fault", metavar="KIND", choices=FAULTS, help=f"what to break: {', '.join(FAULTS)}")
    parser.add_argument("--rank", type=int, metavar="R", help="for kill-worker: which rank")
    parser.add_argument("--node", metavar="N", help="for the others: a node's name, or its position")
    add_job_options(parser)


def inject(chosen: argparse.Namespace) -> int:
    """Ask the controller to have it broken."""
    from ftrain_launcher.jobs import JobFolder
    from ftrain_launcher.query import ask

    wanted, other = ("rank", "node") if chosen.fault == "kill-worker" else ("node", "rank")
    if getattr(chosen, wanted) is None:
        raise UsageError(f"{chosen.fault} needs --{wanted}")
    if getattr(chosen, other) is not None:
        raise UsageError(f"{chosen.fault} takes --{wanted}, not --{other}")
    body: dict[str, Any] = {"kind": chosen.fault, wanted: getattr(chosen, wanted)}
    done = ask(JobFolder.find(chosen.job), "/api/inject", body)
    if chosen.json:
        print_json(done)
    else:
        where = done["node"] if done["rank"] is None else f"rank {done['rank']} on {done['node']}"
        sys.stdout.write(f"{chosen.fault}: {where}\n")
    return 0
