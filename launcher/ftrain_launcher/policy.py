"""Pure: an incident's cause and the job's history to what is done about it.

Two things end a job: the program itself failing the same way at the same step (restarting would burn time
for ever), and faults that follow each other without any progress between them. Everything else resumes.
"""

from __future__ import annotations

import msgspec

from ftrain_launcher.causes import Cause

EXIT_PROGRAM = 1
"""The training program failed."""
EXIT_USAGE = 2
"""What the user asked for cannot be done here."""
EXIT_LOST = 3
"""The job's state is lost: no complete snapshot can be read."""
EXIT_NO_PROGRESS = 4
"""More faults in a row without progress than ``--max-restarts``."""
EXIT_NODES = 5
"""Nodes that were needed did not come."""


class Action(msgspec.Struct, frozen=True):
    """Resume, or end the job with a code and a message."""

    resume: bool
    reason: str
    exit_code: int = 0


def decide(cause: Cause, previous_signature: str, faults_without_progress: int, max_restarts: int) -> Action:
    """What to do about a fault.

    ``previous_signature`` says how the program failed the last time before; ``faults_without_progress`` counts
    this fault.
    """
    if cause.signature and cause.signature == previous_signature:
        return Action(False, f"{cause.reason}, twice in the same way: the program fails", EXIT_PROGRAM)
    if faults_without_progress > max_restarts:
        count = "a fault" if faults_without_progress == 1 else f"{faults_without_progress} faults in a row"
        reason = f"{count} without progress (--max-restarts {max_restarts}); the last: {cause.reason}"
        return Action(False, reason, EXIT_PROGRAM if cause.signature else EXIT_NO_PROGRESS)
    return Action(True, cause.reason)
