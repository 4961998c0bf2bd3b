"""``ftrain controller --resume JOB``: bring a job's controller back."""

from __future__ import annotations

import argparse

from ftrain_launcher.commands.options import Commands, add_command
from ftrain_launcher.errors import ControllerAway, UsageError


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "Start a job's controller again from its journal; the launcher does so by itself when it dies."
    parser = add_command(commands, "controller", controller, about)
    parser.add_argument("--resume", metavar="JOB", required=True, help="the job whose journal is replayed")


def controller(chosen: argparse.Namespace) -> int:
    """Run the controller of a job that has none; training does not stop meanwhile."""
    from ftrain_launcher import query
    from ftrain_launcher.control.controller import serve
    from ftrain_launcher.jobs import JobFolder

    folder = JobFolder.find(chosen.resume)
    if folder.result() is not None:
        raise UsageError(f"job {chosen.resume!r} has ended: there is nothing to resume")
    try:
        running = query.ask(folder, "/api/status", wait_seconds=0.3)
    except ControllerAway:
        pass
    else:
        raise UsageError(f"the controller of job {chosen.resume!r} is running (pid {running['controller']['pid']})")
    return serve(folder)
