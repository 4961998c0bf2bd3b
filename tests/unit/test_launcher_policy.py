"""When a job goes on and when it ends."""

from __future__ import annotations

import pytest

from ftrain_launcher.causes import Cause
from ftrain_launcher.policy import EXIT_NO_PROGRESS, EXIT_PROGRAM, Action, decide

KILL = Cause("worker_exit", (), "rank 1 was killed")
ERROR = Cause("worker_exit", (), "rank 1 raised ValueError", signature="step 5: ValueError")


@pytest.mark.parametrize(
    ("cause", "before", "faults", "exit_code"),
    [
        (KILL, "", 1, 0),
        (KILL, "", 3, 0),
        (KILL, "", 4, EXIT_NO_PROGRESS),
        (ERROR, "", 1, 0),
        (ERROR, "step 4: ValueError", 1, 0),
        (ERROR, "step 5: ValueError", 1, EXIT_PROGRAM),
        (ERROR, "", 4, EXIT_PROGRAM),
    ],
)
def test_decisions_at_three_restarts(cause: Cause, before: str, faults: int, exit_code: int) -> None:
    action = decide(cause, before, faults, max_restarts=3)
    assert (action.exit_code, action.resume) == (exit_code, exit_code == 0)
    assert cause.reason in action.reason


def test_reasons_read_well() -> None:
    assert decide(KILL, "", 1, 0) == Action(
        False, "a fault without progress (--max-restarts 0); the last: rank 1 was killed", EXIT_NO_PROGRESS
    )
    assert decide(ERROR, ERROR.signature, 2, 9).reason == (
        "rank 1 raised ValueError, twice in the same way: the program fails"
    )
