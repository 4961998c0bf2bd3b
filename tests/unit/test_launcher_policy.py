"""When a job goes on and when it ends; what follows from a verdict; which nodes are taken out."""

from __future__ import annotations

import pytest

from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.job.causes import Blame, Cause, Suspect
from ftrain_launcher.job.events import Detect
from ftrain_launcher.job.policy import (
    EXIT_NO_PROGRESS,
    EXIT_PROGRAM,
    Action,
    Response,
    decide,
    isolate,
    isolations_max,
    respond,
)
from ftrain_launcher.job.strikes import Strike

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


# ---- verdicts


def test_a_mismatch_ends_the_job_the_second_time_or_at_once_if_nothing_ever_worked() -> None:
    later = Cause("mismatch", (), "ranks differ", signature="step 5: mismatch", step=5)
    assert decide(later, "", 1, 3).resume
    assert decide(later, later.signature, 2, 3).exit_code == EXIT_PROGRAM
    first = Cause("mismatch", (), "ranks differ", signature="step None: mismatch")
    assert decide(first, "", 1, 3).exit_code == EXIT_PROGRAM
    unsure = Cause("mismatch", (), "ranks differ", signature="step None: mismatch", confidence=0.7)
    assert decide(unsure, "", 1, 3).resume


@pytest.mark.parametrize(
    ("kind", "confidence", "detect", "response"),
    [
        (Kind.HANG, 0.5, Detect.ACT, Response.RESTART),
        (Kind.HANG, 0.49, Detect.ACT, Response.OBSERVE),
        (Kind.HANG, 1.0, Detect.WARN, Response.WARN),
        (Kind.HANG, 1.0, Detect.OFF, Response.OBSERVE),
        (Kind.COMMUNICATION_HANG, 0.8, Detect.ACT, Response.RESTART),
        (Kind.MISMATCH, 0.8, Detect.ACT, Response.RESTART),
        (Kind.SLOW, 1.0, Detect.ACT, Response.WARN),
        (Kind.COMMUNICATION_SLOW, 1.0, Detect.ACT, Response.WARN),
        (Kind.DIVERGENCE, 1.0, Detect.ACT, Response.WARN),
        (Kind.SLOW, 0.3, Detect.ACT, Response.OBSERVE),
        (Kind.CRASH, 1.0, Detect.ACT, Response.OBSERVE),
    ],
)
def test_what_follows_from_a_verdict(kind: Kind, confidence: float, detect: Detect, response: Response) -> None:
    verdict = Verdict(kind=kind, generation=1, ranks=(1,), confidence=confidence, sentence="it is so")
    assert respond(verdict, detect) is response


# ---- who is taken out

HUNG = Cause("hang", (Suspect("a", 1),), "rank 1 hangs", blame=Blame.HUNG)
LOST = Cause("node_lost", (Suspect("a"),), "a is lost", blame=Blame.LOST)


def strikes(*blames: Blame, step: int | None = None) -> tuple[Strike, ...]:
    """At different steps, unless one is given."""
    return tuple(Strike(blame, n if step is None else step, float(n)) for n, blame in enumerate(blames))


def test_the_second_hang_at_another_step_is_the_nodes_fault() -> None:
    assert isolate(HUNG, "a", {"a": strikes(Blame.HUNG)}) == ""
    assert isolate(HUNG, "a", {"a": strikes(Blame.HUNG, Blame.HUNG, step=7)}) == ""
    found = {"a": strikes(Blame.HUNG, Blame.CRASHED), "b": strikes(Blame.HUNG)}
    assert isolate(HUNG, "a", found) == "hung once, crashed once within an hour, at different steps"


def test_a_node_that_flaps_is_taken_out_if_it_stands_out() -> None:
    flaps = strikes(Blame.LOST, Blame.FAILED, Blame.LOST)
    assert isolate(LOST, "a", {"a": flaps, "b": strikes(Blame.LOST)}) == (
        "lost 2 times, failed once within an hour, more than any other node"
    )
    assert isolate(LOST, "a", {"a": flaps, "b": strikes(Blame.LOST, Blame.LOST)}) == ""
    assert isolate(LOST, "a", {"a": flaps[:2]}) == ""


def test_killed_workers_and_failing_programs_say_nothing_against_a_node() -> None:
    killed = Cause("worker_exit", (Suspect("a", 1),), "rank 1 was killed", blame=Blame.KILLED)
    assert isolate(killed, "a", {"a": strikes(*[Blame.KILLED] * 9)}) == ""
    assert isolate(HUNG, "a", {"a": strikes(Blame.KILLED, Blame.HUNG)}) == ""
    raised = Cause("worker_exit", (Suspect("a", 1),), "rank 1 raised")
    assert isolate(raised, "a", {"a": strikes(*[Blame.LOST] * 3)}) == ""


def test_a_node_that_nothing_gets_through_to_is_taken_out_at_once_but_not_the_ends_of_a_link() -> None:
    row = Cause("communication_hang", (Suspect("a"),), "nothing from a", blame=Blame.HUNG)
    assert isolate(row, "a", {}) == "nothing gets through to it, or from it"
    cell = Cause("communication_hang", (Suspect("a"), Suspect("b")), "nothing from a to b", blame=Blame.HUNG)
    assert isolate(cell, "a", {}) == ""
    rank = Cause("communication_hang", (Suspect("a", 1),), "rank 1 is stuck", blame=Blame.HUNG)
    assert isolate(rank, "a", {}) == ""


@pytest.mark.parametrize(("nodes", "most"), [(1, 2), (9, 2), (10, 3), (100, 12)])
def test_the_budget_grows_with_the_job(nodes: int, most: int) -> None:
    assert isolations_max(nodes) == most
