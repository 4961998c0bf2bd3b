"""``ftrain flush``: the job ends at the end of a step, with its state on storage; waits until it has ended."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ftrain_launcher.commands.checks import positive
from ftrain_launcher.commands.options import Commands, add_command, add_job_options, print_json

if TYPE_CHECKING:
    from ftrain_launcher.jobs import JobFolder, Result

DEADLINE_SECONDS = 60.0
LATE_SECONDS = 30.0
"""So long after the deadline the launcher may take to clear up, and to say how the job ended."""
_POLL_SECONDS = 0.1


def add_to(commands: Commands) -> None:
    """Add the command."""
    about = "End a job at the end of a step, with its state sealed, protected, and on storage if it has any. Waits."
    parser = add_command(commands, "flush", flush, about)
    help_deadline = f"how long it may take in all, {DEADLINE_SECONDS:g} by default; then it ends with what was reached"
    parser.add_argument("--deadline-seconds", type=float, default=DEADLINE_SECONDS, metavar="N", help=help_deadline)
    parser.add_argument("--reason", default="", metavar="TEXT", help="why: the job's terminal shows it")
    add_job_options(parser)


def flush(chosen: argparse.Namespace) -> int:
    """Ask for it, and wait: exit code 0 if the job ended with all that was asked for, else 1."""
    from ftrain_launcher.errors import ControllerAway
    from ftrain_launcher.jobs import JobFolder
    from ftrain_launcher.query import ask

    seconds = positive("--deadline-seconds", chosen.deadline_seconds)
    folder = JobFolder.find(chosen.job)
    answer: dict[str, Any] = ask(folder, "/api/flush", {"seconds": seconds, "reason": chosen.reason})
    deadline = time.monotonic() + seconds + LATE_SECONDS
    while (result := folder.result()) is None:
        if time.monotonic() >= deadline:
            raise ControllerAway(f"job {answer['job']!r} has not ended {LATE_SECONDS:g} s after its deadline")
        time.sleep(_POLL_SECONDS)  # the result is a file, and the API tells no news
        answer = _look(folder, answer)
    answer = _last_word(folder, answer, result)
    if chosen.json:
        print_json(answer)
    else:
        sys.stdout.write(f"{answer['job']}: {answer['message']}\n")
    return 0 if result.exit_code == 0 else 1


def _look(folder: JobFolder, before: dict[str, Any]) -> dict[str, Any]:
    """How far it is; what was known before, if the controller does not say."""
    from ftrain_launcher.errors import LauncherError
    from ftrain_launcher.query import ask

    try:
        answer: dict[str, Any] = ask(folder, "/api/flush")
    except LauncherError:
        return before
    return answer


def _last_word(folder: JobFolder, before: dict[str, Any], result: Result) -> dict[str, Any]:
    """The journal knows it; on a host without one, what was heard last, and how the job ended."""
    from ftrain_launcher.control import views
    from ftrain_launcher.control.journal import replay

    answer = views.flush(replay(folder.journal)) if folder.journal.exists() else before
    return answer | {"exit_code": result.exit_code, "message": result.message}
