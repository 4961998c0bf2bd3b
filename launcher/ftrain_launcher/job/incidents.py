"""An incident: one fault from its first sign to the first new training step, with its timeline; and the log of them.

An incident takes in signs until its generation has been formed anew; what breaks after that is the next one. It is
closed when all ranks have made a step, or had none left to make. What stops nobody enters the log closed; what the
detector says of one thing again and again is one incident, for as long as it goes on.
"""

from __future__ import annotations

import msgspec

from ftrain.link import Certified
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.job.causes import Cause, Sign, classify
from ftrain_launcher.job.rungs import Rung

INCIDENTS_KEPT = 1000
VERDICTS_KEPT = 16
"""Of one incident."""


class Timeline(msgspec.Struct, kw_only=True):
    """Unix seconds; None: not yet."""

    detected: float
    """The first sign."""
    named: float | None = None
    """The detector's first verdict."""
    decided: float | None = None
    formed: float | None = None
    restored: float | None = None
    """All ranks have their state back."""
    first_step: float | None = None
    """All ranks have made a step."""


class Incident(msgspec.Struct, kw_only=True):
    """One fault, as operators see it."""

    number: int
    generation: int
    """The generation that it ended."""
    timeline: Timeline
    signs: list[Sign] = []
    verdicts: list[Verdict] = []
    """What the detector said, in order; of what it said again and again the first and the last."""
    cause: Cause | None = None
    decision: str = ""
    """What followed, and why."""
    rung: Rung | None = None
    """How the job was formed again."""
    steps_lost: int = 0
    """Sealed versions newer than the one that was resumed from."""
    resumed_from: int | None = None
    ranks: int = 0
    """That have their state back; 0: not all."""
    ranks_kept: int = 0
    """Those of them that kept their live tensors."""
    read_bytes: int = 0
    """Of state, by all ranks."""
    demoted: int | None = None
    """A newer version that was passed over, since the loss was not finite after it."""
    certificate: Certified | None = None
    """Where the state was re-sharded: what was proved of it before the first step."""
    refused: Certified | None = None
    """Where it broke since that could not be proved: what was found."""
    doubtful: int | None = None
    """A newer version that was passed over, since it could not be certified."""
    closed: bool = False
    harmless: bool = False
    """It stopped nobody."""
    over: str = ""
    """How it ended: what the detector says again and again, or what was no fault; empty: it may go on, or was one."""

    def add(self, sign: Sign) -> None:
        """Take in one more sign; several accounts of one thing count once."""
        self.timeline.detected = min(self.timeline.detected, sign.time)
        if sign.verdict is not None:
            kept = self.verdicts[:1] if self.harmless else self.verdicts[: VERDICTS_KEPT - 1]
            self.verdicts = [*kept, sign.verdict]
            self.timeline.named = sign.time if self.timeline.named is None else self.timeline.named
        for index, known in enumerate(self.signs):
            if (known.kind, known.node, known.rank) == (sign.kind, sign.node, sign.rank):
                self.signs[index] = known.merged(sign)
                return
        self.signs.append(sign)

    def acquit(self, how: str) -> None:
        """Its suspects were no fault of their nodes, as is known now."""
        self.over = how
        if self.cause is not None:
            self.cause = msgspec.structs.replace(self.cause, blame=None)

    def decide(self, decision: str) -> bool:
        """Note what follows; False: it was noted before."""
        if decision in self.decision:
            return False
        self.decision += f"; {decision}" if self.decision else decision
        return True

    @property
    def seconds(self) -> float | None:
        """From the first sign to the first new step of all ranks."""
        if self.timeline.first_step is None:
            return None
        return self.timeline.first_step - self.timeline.detected


class IncidentLog:
    """All incidents of a job, the newest ``INCIDENTS_KEPT`` of them in detail; at most one is open."""

    def __init__(self) -> None:
        self.entries: list[Incident] = []
        self.total = 0
        self.open: Incident | None = None

    @property
    def forming(self) -> Incident | None:
        """The open incident, if the job has not been formed again since."""
        return self.open if self.open is not None and self.open.timeline.formed is None else None

    def take(self, sign: Sign, generation: int) -> Incident:
        """Put a sign where it belongs: into the incident that is being dealt with, or into a new one."""
        incident = self.forming
        if incident is None:
            self.close(first_step=None)
            incident = self.open = self._append(sign, generation)
        incident.add(sign)
        return incident

    def record_harmless(self, sign: Sign, generation: int) -> bool:
        """A fault that stopped nobody: it enters the log closed. False: it was told before, on another line."""
        told = ((s.kind, s.node, s.reason) for entry in self.entries for s in entry.signs)
        if (sign.kind, sign.node, sign.reason) in told:
            return False
        self.append_harmless(sign, generation)
        return True

    def append_harmless(self, sign: Sign, generation: int) -> Incident:
        """The same, whether or not it was told before."""
        incident = self._append(sign, generation)
        incident.add(sign)
        incident.cause, incident.closed, incident.harmless = classify([sign]), True, True
        incident.timeline.decided = sign.time
        return incident

    def close(self, *, first_step: float | None) -> Incident | None:
        """Close the open incident; ``first_step``: when all ranks had made a step again, None if they had not."""
        incident, self.open = self.open, None
        if incident is not None:
            incident.closed = True
            incident.timeline.first_step = first_step
        return incident

    def of_generation(self, generation: int) -> Incident | None:
        """The incident that ended a generation; the newest, if it took several attempts to form the next one."""
        mine = (i for i in reversed(self.entries) if i.generation == generation and not i.harmless)
        return next(mine, None)

    def signature_before(self, incident: Incident) -> str:
        """How the program failed the last time before this incident; empty: it never did.

        The step is part of a signature, so it is of no matter what else happened in between.
        """
        for earlier in reversed(self.entries):
            if earlier.number < incident.number and earlier.cause is not None and earlier.cause.signature:
                return earlier.cause.signature
        return ""

    def _append(self, sign: Sign, generation: int) -> Incident:
        self.total += 1
        incident = Incident(number=self.total, generation=generation, timeline=Timeline(detected=sign.time))
        self.entries.append(incident)
        del self.entries[:-INCIDENTS_KEPT]
        return incident
