"""Pure: verdicts, an incident's cause and the job's history to what is done about them.

Two things end a job: the program itself failing the same way at the same step (restarting would burn time
for ever), and faults that follow each other without any progress between them. Everything else resumes.

A verdict convicts nobody: a guess is only written down, what slows the job or spoils its state is told, what blocks it
is a fault like any other. Whether a node is taken out rests on what else it did within an hour (`strikes.py`), and is
bounded by a budget: whatever goes wrong here, it does not eat up the job's nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import msgspec

from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.job.causes import Blame, Cause
from ftrain_launcher.job.events import Detect
from ftrain_launcher.job.strikes import Strike, Strikes

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
EXIT_NOT_FLUSHED = 7
"""The time to flush the job was over before its state was on storage; 6 is a controller out of reach."""


CONFIDENCE_MIN = 0.5
"""What is less sure than this is a guess."""
CERTAIN = 0.9
"""What is surer than this needs no second time."""
HANGS_MAX = 2
"""So many hangs or crashes at different steps within an hour are a node's fault, wherever they come from."""
STRIKES_MAX = 3
"""So many incidents of any kind within an hour, if no other node has even half as many."""
ISOLATIONS_MIN = 2
ISOLATIONS_SHARE = 0.1
"""Within an hour the policy takes out that many nodes, and this share of the job's nodes."""


class Response(Enum):
    """What a verdict leads to."""

    OBSERVE = auto()
    """It is in the journal, and that is all."""
    WARN = auto()
    RESTART = auto()
    """It is a fault: the next generation is formed."""


def respond(verdict: Verdict, detect: Detect) -> Response:
    """What to do about a verdict; crashes are seen without the detector."""
    if verdict.confidence < CONFIDENCE_MIN or verdict.kind is Kind.CRASH or detect is Detect.OFF:
        return Response.OBSERVE
    if detect is Detect.WARN or verdict.kind in (Kind.SLOW, Kind.COMMUNICATION_SLOW, Kind.DIVERGENCE):
        return Response.WARN
    return Response.RESTART


def isolate(cause: Cause, machine: str, strikes: Strikes) -> str:
    """Why the machine that a cause suspects is better taken out; empty: it is not.

    That somebody killed workers there is no evidence against it.
    """
    counted = {name: [s for s in found if s.blame is not Blame.KILLED] for name, found in strikes.items()}
    own = counted.get(machine, [])
    if cause.kind == Kind.COMMUNICATION_HANG and len(cause.nodes) == 1 and cause.suspects[0].rank is None:
        return "nothing gets through to it, or from it"
    bad = [s for s in own if s.blame in (Blame.HUNG, Blame.CRASHED)]
    if cause.blame in (Blame.HUNG, Blame.CRASHED) and len({s.step for s in bad}) >= HANGS_MAX:
        return f"{_count(bad)} within an hour, at different steps"
    others = max((len(s) for name, s in counted.items() if name != machine), default=0)
    if cause.blame not in (None, Blame.KILLED) and len(own) >= max(STRIKES_MAX, 2 * others):
        return f"{_count(own)} within an hour, more than any other node"
    return ""


def isolations_max(nodes: int) -> int:
    """How many nodes the policy may take out within an hour."""
    return ISOLATIONS_MIN + int(ISOLATIONS_SHARE * nodes)


def _count(strikes: Sequence[Strike]) -> str:
    """Like ``hung 2 times, lost once``."""
    kinds = [s.blame for s in strikes]
    times = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{kind} {'once' if n == 1 else f'{n} times'}" for kind, n in times.items())


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
    if cause.kind == Kind.MISMATCH and cause.step is None and cause.confidence >= CERTAIN:
        return Action(False, f"{cause.reason}, before the first step: the program fails", EXIT_PROGRAM)
    if cause.signature and cause.signature == previous_signature:
        return Action(False, f"{cause.reason}, twice in the same way: the program fails", EXIT_PROGRAM)
    if faults_without_progress > max_restarts:
        count = "a fault" if faults_without_progress == 1 else f"{faults_without_progress} faults in a row"
        reason = f"{count} without progress (--max-restarts {max_restarts}); the last: {cause.reason}"
        return Action(False, reason, EXIT_PROGRAM if cause.signature else EXIT_NO_PROGRESS)
    return Action(True, cause.reason)


def give_up(cause: Cause, times: int) -> Action | None:
    """The end, where a rank hangs at one place whatever time it is given; ``times``: so often, with all that may be
    given; 0: it may be given more."""
    if not times:
        return None
    reason = f"called hung {times} times at one place, with more time each time; the last: {cause.reason}"
    return Action(False, reason, EXIT_NO_PROGRESS)
