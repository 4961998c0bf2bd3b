"""Pure: what was seen to go wrong (`Sign`), and what it means (`classify`).

One fault shows in many places: a killed worker makes its neighbours raise, a lost store makes everybody raise. So
signs are gathered until the generation has stopped, and then the likely cause is named by rank of explanation: a
lost node explains everything; then a worker that was killed; then a store or a restore that failed; then an
exception of the user's own code; then what the detector says, a mismatch before a hang; then an abort, with which
libraries end a process whose peer is gone; then a number of ranks that the script cannot use; and last the
communication errors that all of these leave behind, or who
ended without an error before the others, if nothing else explains these, or if the detector says that the others wait
for it. What was only meant to happen, like moving ranks to another node, explains nothing.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from enum import IntEnum, StrEnum

import msgspec

from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.from_agent import Failure, WorkerExit
from ftrain_launcher.job.last_words import last_words, misses_a_peer

UNLIKE = "unlike_ranks"
"""The kind of a `Trouble`: ranks keep what they have in common in different orders."""
FOLDER_GONE = "folder_gone"
"""The same: a node's files in shared memory were removed. What runs there goes on, and nothing can start there."""
HARMLESS = ("daemon_exit", "chunks_damaged", UNLIKE, FOLDER_GONE)
"""Kinds of `Trouble` that stop nobody."""
DRAINED = "drained"
"""The kind of an incident that is none: ranks were moved to another node."""
GROWN = "grown"
"""The same: nodes that came are taken in."""
MISFIT = "misfit"
"""The same: the number of ranks does not fit the script's device mesh, and another one does."""
NOT_CERTIFIED = "not_certified"
"""The kind of a `Trouble`: a state that was stored or re-sharded is doubtful. Of the sign, ``step`` says which."""
HANGS = (Kind.HANG, Kind.COMMUNICATION_HANG)
_IN_COMMUNICATION = (Kind.COMMUNICATION_HANG, Kind.COMMUNICATION_SLOW)
_VERDICTS = frozenset(Kind) - {Kind.CRASH}


class Suspect(msgspec.Struct, frozen=True):
    """A rank or node at fault."""

    node: str
    rank: int | None = None
    pid: int | None = None


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was seen to go wrong."""

    kind: str
    """``node_lost``, ``agent_lost``, ``worker_exit``, the kind of a `Trouble`, or that of a verdict."""
    node: str
    time: float
    """When it was first seen, in Unix seconds."""
    rank: int | None = None
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    with_zygote: bool = False
    """It died with its node's zygote."""
    failure: Failure | None = None
    step: int | None = None
    """The last step that the rank committed."""
    reason: str = ""
    suspects: tuple[Suspect, ...] = ()
    """Where it names several, or none: the likeliest first."""
    verdict: Verdict | None = None
    """What the detector said."""
    last_lines: tuple[str, ...] = ()
    """Of the worker's log."""

    @property
    def misses_a_peer(self) -> bool:
        """A worker ended with an error of communication: of a script without `resilient` its log says so."""
        if self.failure is not None:
            return self.failure.communication
        return bool(self.code) and self.signal is None and misses_a_peer(self.last_lines)

    def merged(self, later: Sign) -> Sign:
        """This sign with what a later account of the same thing adds: a worker raises first, and exits after that."""
        return msgspec.structs.replace(
            self,
            pid=later.pid if self.pid is None else self.pid,
            code=later.code if self.code is None else self.code,
            signal=later.signal if self.signal is None else self.signal,
            with_zygote=self.with_zygote or later.with_zygote,
            failure=self.failure or later.failure,
            step=later.step if self.step is None else self.step,
            last_lines=later.last_lines or self.last_lines,
        )


def sign_of_exit(event: WorkerExit, now: float) -> Sign:
    """A worker raised, or ended without having finished."""
    return Sign(
        kind="worker_exit",
        node=event.node,
        time=now,
        rank=event.rank,
        pid=event.pid,
        code=event.code,
        signal=event.signal,
        with_zygote=event.with_zygote,
        failure=event.failure,
        step=event.step,
        last_lines=event.last_lines,
    )


def sign_of_verdict(verdict: Verdict, nodes: Sequence[str], nproc_per_node: int, now: float) -> Sign:
    """The detector has found something; ``nodes`` are those of its generation, in order of position.

    Where it is about communication, nodes and links are suspects, a link by both ends, and ranks only where it shows.
    """
    places = [(nodes[r // nproc_per_node], r) for r in verdict.ranks if 0 <= r // nproc_per_node < len(nodes)]
    named = list(verdict.nodes)
    for link in verdict.links if not named else ():
        named += [nodes[p] for p in (link.source, link.destination) if 0 <= p < len(nodes)]
    suspects = [Suspect(node, rank) for node, rank in places]
    if named and (verdict.kind in _IN_COMMUNICATION or not suspects):
        suspects = [Suspect(node) for node in dict.fromkeys(named)]
    first = suspects[0] if suspects else Suspect("")
    return Sign(
        kind=str(verdict.kind),
        node=first.node,
        rank=first.rank,
        time=now,
        step=None if verdict.step is None or verdict.step < 0 else verdict.step,
        reason=verdict.sentence,
        suspects=tuple(suspects),
        verdict=verdict,
    )


class Blame(StrEnum):
    """What a cause says of its suspects' nodes; a program's own failure says nothing."""

    LOST = "lost"
    CRASHED = "crashed"
    """A worker died of itself, and not by an exception."""
    KILLED = "killed"
    """Somebody killed a worker: the kernel, for want of memory, or a person."""
    HUNG = "hung"
    FAILED = "failed"
    """It could not do its part: its store, its daemon or its zygote failed."""


class Cause(msgspec.Struct, frozen=True):
    """What an incident's signs mean."""

    kind: str
    suspects: tuple[Suspect, ...]
    reason: str
    signature: str = ""
    """Equal for two failures of the program itself that are the same; empty if the program is not to blame."""
    traceback: str = ""
    """Of the exception that is the cause, if one is."""
    step: int | None = None
    """The last step before it."""
    blame: Blame | None = None
    """None: it is not for their nodes that the suspects are at fault."""
    confidence: float = 1.0

    @property
    def nodes(self) -> tuple[str, ...]:
        """The suspects' nodes."""
        return tuple(dict.fromkeys(s.node for s in self.suspects))


class _Weight(IntEnum):
    """How much a sign explains: the lowest number is the cause."""

    NODE = 0
    KILLED = 1
    INFRASTRUCTURE = 2
    PROGRAM = 3
    MISMATCH = 4
    HANG = 5
    ABORT = 6
    MISFIT = 7
    """Whoever raises it leaves, perhaps while others still connect to it."""
    CONSEQUENCE = 8
    PLANNED = 9
    ENDED = 10
    """In good order, as it seemed: it matters only where others miss it."""


_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that somebody else sends: that they come twice at one step is chance."""
_INTERRUPTED = signal.SIGINT
"""Who ends of it has raised KeyboardInterrupt, and nothing says that somebody had sent it the signal."""
_SIGNAL_IN_CODE = 128
"""Shells and python's own handlers end a process that signal n stopped with the code 128 + n."""


def classify(signs: Sequence[Sign]) -> Cause:
    """Name the likely cause among an incident's signs, whatever the order in which they arrived."""
    named = min((s.time for s in signs if s.verdict is not None), default=math.inf)
    weights = [_weight(s, named) for s in signs]
    weight = min(weights)
    ended = {s.rank for s, of in zip(signs, weights, strict=True) if of is _Weight.ENDED}
    if ended and (weight is _Weight.CONSEQUENCE or (weight is _Weight.HANG and ended & hanging(signs))):
        weight = _Weight.ENDED
    found = (s for s, of in zip(signs, weights, strict=True) if of is weight)
    causes = sorted(found, key=lambda s: (s.time, s.node, s.rank or 0))
    if weight >= _Weight.PROGRAM:
        causes = causes[:1]  # Of workers that fail one after the other, the first has most likely pulled the rest down.
    first = causes[0]
    return Cause(
        kind=first.kind,
        suspects=tuple(suspect for s in causes for suspect in _suspects(s)),
        reason="; ".join(describe(s) for s in causes),
        signature=_signature(first) if weight in _OF_THE_PROGRAM or _is_unexplained_exit(first) else "",
        traceback=first.failure.traceback if first.failure else "",
        step=first.step,
        blame=_blame(first, weight),
        confidence=1.0 if first.verdict is None else first.verdict.confidence,
    )


def hanging(signs: Sequence[Sign]) -> set[int | None]:
    """Ranks that the others wait for, as the detector sees it."""
    return {suspect.rank for sign in signs if sign.kind == Kind.HANG for suspect in sign.suspects}


def _suspects(sign: Sign) -> Sequence[Suspect]:
    return (Suspect(sign.node, sign.rank, sign.pid),) if sign.verdict is None else sign.suspects


def _weight(sign: Sign, named: float = math.inf) -> _Weight:
    """``named``: when the detector spoke. An exception after that comes of what it has found."""
    if sign.kind in ("node_lost", "agent_lost"):
        return _Weight.NODE
    if sign.kind in _VERDICTS:
        return _Weight.MISMATCH if sign.kind == Kind.MISMATCH else _Weight.HANG
    if sign.kind == MISFIT:
        return _Weight.MISFIT
    if sign.kind in (DRAINED, GROWN):
        return _Weight.PLANNED
    if sign.kind != "worker_exit":
        return _Weight.INFRASTRUCTURE
    if sign.failure is not None:
        return _Weight.CONSEQUENCE if sign.misses_a_peer or sign.time > named else _Weight.PROGRAM
    number = _signal_of(sign)
    if number is None:
        if sign.misses_a_peer:
            return _Weight.CONSEQUENCE
        return _Weight.ENDED if sign.code == 0 else _Weight.PROGRAM
    return _Weight.ABORT if number == signal.SIGABRT else _Weight.KILLED


_OF_THE_PROGRAM = (_Weight.KILLED, _Weight.PROGRAM, _Weight.MISMATCH, _Weight.ABORT, _Weight.ENDED)
"""These may be the program's own fault."""


def _is_unexplained_exit(sign: Sign) -> bool:
    """Of a script that does not tell its errors: what its log says is enough to look for another cause first, and not
    to start it again for ever if there is none."""
    return sign.kind == "worker_exit" and sign.failure is None and sign.misses_a_peer


def _blame(sign: Sign, weight: _Weight) -> Blame | None:
    match weight:
        case _Weight.NODE:
            return Blame.LOST
        case _Weight.KILLED:
            return Blame.KILLED if _signal_of(sign) in _FROM_OUTSIDE else Blame.CRASHED
        case _Weight.HANG if sign.kind in HANGS:
            return Blame.HUNG
        case _Weight.INFRASTRUCTURE if sign.kind in ("store_lost", "form_failed"):
            return Blame.FAILED
    return None


def _signal_of(sign: Sign) -> int | None:
    """The signal that ended a worker, also where its exit code only quotes it."""
    if sign.signal is None and sign.code is not None and sign.code - _SIGNAL_IN_CODE in _FROM_OUTSIDE:
        return sign.code - _SIGNAL_IN_CODE
    return sign.signal


def _signature(sign: Sign) -> str:
    """A worker that fails the same way at the same step is a program error (DESIGN 7); a kill is not.

    The rank is left out: where all ranks raise, any of them may be heard first.
    """
    number = _signal_of(sign)
    if sign.kind == Kind.MISMATCH:
        return f"step {sign.step}: mismatch"
    if sign.failure is not None:
        step = sign.step if sign.failure.step is None else sign.failure.step
        return f"step {step}: {sign.failure.error.split(':')[0]}"
    if number is None:
        # Of a script whose steps are not known nobody can say that it ended too early.
        unknown = sign.code is None or (sign.code == 0 and sign.step is None)
        return "" if unknown else f"step {sign.step}: code {sign.code}"
    return "" if number in _FROM_OUTSIDE - {_INTERRUPTED} else f"step {sign.step}: signal {number}"


_WORDS = {
    "node_lost": "{node} is lost",
    "agent_lost": "the agent of {node} came back alone",
    "daemon_exit": "the daemon of {node} died and was started again",
    "chunks_damaged": "{node} found damaged chunks of its snapshots",
    "store_lost": "the store on {node} is gone",
    "form_failed": "{node} could not form the generation",
    "restore_failed": "{node} could not restore its state",
    UNLIKE: "no snapshot can be taken, and a fault would cost all",
    NOT_CERTIFIED: "{node} refuses the state that it was given",
    FOLDER_GONE: "somebody removed the files of {node} in shared memory; at the next fault the node is lost",
    DRAINED: "{node} gives its ranks away",
    GROWN: "{node} is taken in",
    MISFIT: "so many ranks do not fit",
}


def describe(sign: Sign) -> str:
    """One clause that a person understands."""
    if sign.kind == "worker_exit":
        where = f"rank {sign.rank} on {sign.node}"
        # Of a script without a `Context` no step is known: nothing is said then.
        after = "" if sign.step is None else f" after step {sign.step}"
        number = _signal_of(sign)
        if sign.failure is not None:
            return f"{where} raised {sign.failure.error}{after}"
        last = last_words(sign.last_lines)
        if sign.with_zygote:
            return f"{where} died with its node's zygote{after}"
        if number is not None:
            # Libraries say why before they abort.
            why = f": {last}" if last and number == signal.SIGABRT else ""
            return f"{where} was killed by {_signal_name(number)}{after}{why}"
        how = "is gone" if sign.code is None else f"exited with code {sign.code}"
        too_soon = ", before the others" if sign.code == 0 else ""
        return f"{where} {how}{after}{too_soon}" + (f": {last}" if last and sign.code else "")
    if sign.verdict is not None:
        return sign.reason
    text = _WORDS.get(sign.kind, f"{sign.kind} on {{node}}").format(node=sign.node)
    return f"{text} ({sign.reason})" if sign.reason else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
