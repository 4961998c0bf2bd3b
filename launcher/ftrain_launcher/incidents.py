"""An incident: one fault from its first sign to the first new training step, with its timeline.

What is seen (`Sign`) and what it means (`classify`) are apart: one fault shows in many places - a killed
worker makes its neighbours raise - so signs are gathered until the generation has stopped, and then the
likely cause is named: a lost node explains everything, a signal explains exceptions, an exception of the
user's code explains the communication errors of its peers.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import msgspec

from ftrain_launcher.messages import Failure


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was seen to go wrong."""

    kind: str
    """``node_lost``, ``worker_exit``, ``store_lost``, ``form_failed``, ``restore_failed`` or ``agent_lost``."""
    node: str
    time: float
    rank: int | None = None
    pid: int | None = None
    code: int | None = None
    signal: int | None = None
    failure: Failure | None = None
    step: int | None = None
    reason: str = ""


class Suspect(msgspec.Struct, frozen=True):
    """A rank or node at fault."""

    node: str
    rank: int | None = None
    pid: int | None = None


class Timeline(msgspec.Struct, kw_only=True):
    """Unix seconds; None: not yet."""

    detected: float
    decided: float | None = None
    formed: float | None = None
    restored: float | None = None
    first_step: float | None = None


class Cause(msgspec.Struct, frozen=True):
    """What an incident's signs mean."""

    kind: str
    suspects: tuple[Suspect, ...]
    reason: str
    signature: str = ""
    """Equal for two failures of the program itself that are the same; empty if the program is not to blame."""


class Incident(msgspec.Struct, kw_only=True):
    """One fault, as operators see it."""

    number: int
    generation: int
    """The generation that it ended."""
    timeline: Timeline
    signs: list[Sign] = []
    cause: Cause | None = None
    steps_lost: int = 0
    resumed_from: int | None = None
    closed: bool = False

    def add(self, sign: Sign) -> None:
        """Take in one more sign; the same worker's exit counts once, and its fuller account wins."""
        for index, known in enumerate(self.signs):
            if (known.kind, known.node, known.rank) == (sign.kind, sign.node, sign.rank):
                if known.failure is None and sign.failure is not None:
                    self.signs[index] = sign
                return
        self.signs.append(sign)

    @property
    def seconds(self) -> float | None:
        """From detection to the first new step of all ranks."""
        if self.timeline.first_step is None:
            return None
        return self.timeline.first_step - self.timeline.detected


_WEIGHT_NODE, _WEIGHT_SIGNAL, _WEIGHT_PROGRAM, _WEIGHT_INFRASTRUCTURE, _WEIGHT_CONSEQUENCE = range(5)
_SIGNALS_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def _weight(sign: Sign) -> int:
    if sign.kind in ("node_lost", "agent_lost"):
        return _WEIGHT_NODE
    if sign.kind != "worker_exit":
        return _WEIGHT_INFRASTRUCTURE
    if sign.signal is not None:
        return _WEIGHT_SIGNAL
    if sign.failure is not None and sign.failure.communication:
        return _WEIGHT_CONSEQUENCE
    return _WEIGHT_PROGRAM


def classify(signs: Sequence[Sign]) -> Cause:
    """Name the likely cause among an incident's signs: pure, and independent of their order of arrival."""
    weight = min(map(_weight, signs))
    causes = sorted((s for s in signs if _weight(s) == weight), key=lambda s: (s.time, s.node, s.rank or 0))
    if weight in (_WEIGHT_PROGRAM, _WEIGHT_CONSEQUENCE):
        causes = causes[:1]
    first = causes[0]
    suspects = tuple(Suspect(s.node, s.rank, s.pid) for s in causes)
    return Cause(
        kind=first.kind,
        suspects=suspects,
        reason="; ".join(describe(s) for s in causes),
        signature=_signature(first, weight),
    )


def _signature(sign: Sign, weight: int) -> str:
    """A worker that fails the same way at the same step is a program error (DESIGN 7); a kill is not.

    The rank is left out: where all ranks raise, any of them may be heard first.
    """
    if sign.kind != "worker_exit" or weight not in (_WEIGHT_SIGNAL, _WEIGHT_PROGRAM):
        return ""
    if sign.signal is not None and sign.signal in _SIGNALS_FROM_OUTSIDE:
        return ""
    raised = sign.failure.error.split(":")[0] if sign.failure else ""
    return f"step {sign.step}: {raised or f'code {sign.code} signal {sign.signal}'}"


def describe(sign: Sign) -> str:
    """One clause that a person understands."""
    if sign.kind == "worker_exit":
        where = f"rank {sign.rank} on {sign.node}"
        after = "before its first step" if sign.step is None else f"after step {sign.step}"
        if sign.signal is not None:
            return f"{where} was killed by {_signal_name(sign.signal)} {after}"
        if sign.failure is not None:
            return f"{where} raised {sign.failure.error} {after}"
        return f"{where} exited with code {sign.code} {after}"
    words = {
        "node_lost": f"{sign.node} is lost",
        "agent_lost": f"the agent of {sign.node} did not come back",
        "store_lost": f"the store on {sign.node} is gone",
        "form_failed": f"{sign.node} could not form the generation",
        "restore_failed": f"{sign.node} could not restore its state",
    }
    text = words.get(sign.kind, f"{sign.kind} on {sign.node}")
    return f"{text} ({sign.reason})" if sign.reason else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
