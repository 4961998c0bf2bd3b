"""One generation's detector: reports go in, new verdicts come out.

It is pure: who calls says what time it is. While nothing is wrong it does next to nothing: each report says when the
first of its pending operations will have lasted too long, and before that moment nobody looks further. Then the graph
of waits is built from the newest reports and judged: a mismatch explains a hang, a hang explains that others wait, and
only what neither explains is a hang of communication itself.

What is slow or diverges is other judges' work; they are given the same reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ftrain_launcher.detect import findings
from ftrain_launcher.detect.beside import training_waits
from ftrain_launcher.detect.look import look
from ftrain_launcher.detect.patience import Patience, WentOn
from ftrain_launcher.detect.records import NodeReport, RankRecord
from ftrain_launcher.detect.spells import WATCH_SECONDS, Spells
from ftrain_launcher.detect.timeouts import DIFFERENT_SECONDS, HALTED_SECONDS, STALE_SECONDS, allowed_seconds
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.detect.waits import STOPPED, Standing, pending_of, recent_of

FORGET_SECONDS = 5.0
"""A finding that was not made for so long is told again when it is made."""
STALL_SECONDS = 0.5
"""Outside of all operations for longer is kept: peers that were outside at the same time are not late."""
_STALLS_KEPT = 4
_BACK_SECONDS = 0.8
"""Over about this long a rank's use of the processor is looked at."""
_LOOK_SECONDS_PER_RANK, _RANKS_FEW = 2e-5, 64
"""Between two looks at a graph: large ones take time, those of a few ranks do not."""
_EARLY_FACTOR = 50.0
"""So many times that between looks while nothing is overdue: they ask only whether operations differ."""


def seconds_between_looks(ranks: int) -> float:
    """How long to wait between two looks at the graph of so many ranks, which take a while."""
    return _LOOK_SECONDS_PER_RANK * max(0, ranks - _RANKS_FEW)


class Judge(Protocol):
    """Another part of the detector, with the same face."""

    def take(self, report: NodeReport, now: float) -> None:
        """A node's report has come."""

    def verdicts(self, now: float) -> list[Verdict]:
        """New verdicts only."""


class Detector:
    """What the reports of one generation show.

    ``nodes`` says on which node each rank is; ``judges`` are given every report too, and their verdicts are told along;
    ``patience`` is the job's.
    """

    def __init__(
        self,
        generation: int,
        nodes: Mapping[int, str],
        judges: Sequence[Judge] = (),
        patience: Patience | None = None,
    ) -> None:
        self.generation = generation
        self._nodes, self._judges = nodes, judges
        self._patience = patience or Patience()
        self._spells = Spells(generation, self._patience)
        self._standings: dict[int, Standing] = {}
        self._due: dict[str, tuple[float, float, float]] = {}
        """By node: when the first of its operations will be overdue, when it would be if somebody were halted, and when
        if it differs from what others are in."""
        self._halted: set[int] = set()
        self._told: dict[Kind, tuple[tuple[object, ...], float]] = {}
        """The suspects last told of, whether that was sure, and when they last were found."""
        self._looked = float("-inf")

    def take(self, report: NodeReport, now: float) -> None:
        """A node's report has come; one of another generation is dropped. ``now`` in seconds, of any one clock."""
        if report.generation != self.generation:
            return
        due = halted_due = different_due = float("inf")
        watched = WATCH_SECONDS if self._spells.watches(self._standings) else float("inf")
        for record in report.ranks:
            standing = self._stand(record, report, now)
            self._standings[record.rank] = standing
            self._spells.take(standing)
            (self._halted.add if standing.halted else self._halted.discard)(record.rank)
            for operation in pending_of(record):
                due = min(due, now + min(watched, allowed_seconds(operation)) - operation.age_seconds)
                halted_due = min(halted_due, now + HALTED_SECONDS - operation.age_seconds)
                different_due = min(different_due, now + DIFFERENT_SECONDS - operation.age_seconds)
        for rank in report.unrecorded:
            self._standings.pop(rank, None)
            self._halted.discard(rank)
        self._due[report.node] = due, halted_due, different_due
        for judge in self._judges:
            judge.take(report, now)

    def verdicts(self, now: float) -> list[Verdict]:
        """What has been found and was not told before; a finding is told again when its suspects change."""
        new = [verdict for judge in self._judges for verdict in judge.verdicts(now)]
        if not self._is_due(now):
            return new
        self._looked = now
        stale = {rank for rank, standing in self._standings.items() if now - standing.taken > STALE_SECONDS}
        graph = look(self._standings, stale)
        found_now = findings.Findings(graph, self.generation, self._nodes, now, self._patience)
        self._spells.look(found_now.judge)
        for verdict in found_now.find():
            suspects, last = self._told.get(verdict.kind, ((), float("-inf")))
            # Nothing follows from a guess; what has become sure since is news.
            found = (verdict.ranks, verdict.nodes, verdict.confidence >= findings.SURE)
            if found != suspects or now - last > FORGET_SECONDS:
                new.append(verdict)
                if verdict.allowed_seconds:
                    self._spells.call(found_now.judge, verdict.ranks, verdict.allowed_seconds)
            self._told[verdict.kind] = found, now
        return new

    def _is_due(self, now: float) -> bool:
        """Whether to look at the graph."""
        pause_seconds = seconds_between_looks(len(self._standings))
        if now < self._looked + pause_seconds:
            return False
        which = 1 if self._halted else 0
        if now >= min((times[which] for times in self._due.values()), default=float("inf")):
            return True
        early = now >= min((times[2] for times in self._due.values()), default=float("inf"))
        return early and now >= self._looked + _EARLY_FACTOR * pause_seconds

    def went_on(self) -> list[WentOn]:
        """Who was called hung, now or in an earlier generation, and went on by himself in this one; told once."""
        return self._spells.ended()

    def forget(self, kind: Kind) -> None:
        """What was told of this kind is over: if it is found again, that is new."""
        self._told.pop(kind, None)

    def has_passed(self, verdict: Verdict) -> bool:
        """Whether all have left by now what a verdict says that all had entered and not left; or who hung has moved."""
        if verdict.kind is Kind.HANG:
            return bool(verdict.allowed_seconds) and self._spells.have_gone_on(verdict.ranks)
        held = {(wait.waiter, wait.communicator, wait.seq) for wait in verdict.waits if not wait.waited_for}
        return bool(held) and not any(self._is_inside(*one) for one in held)

    def _is_inside(self, rank: int, communicator: str, seq: int) -> bool:
        """Also if nothing is known of it any more."""
        standing = self._standings.get(rank)
        if standing is None:
            return True
        record, names = standing.record, [communicator.name for communicator in standing.communicators]
        places = [(place.communicator, place.pending) for place in record.collectives]
        places += [(channel.communicator, channel.pending) for channel in record.channels]
        return any(
            names[number] == communicator and any(one.seq == seq for one in pending) for number, pending in places
        )

    def explain(self, now: float) -> Verdict | None:
        """What differs among the newest reports, also if nothing is pending any more; None: nothing.

        For when a worker has raised an error of communication. Told or not, it is told again.
        """
        return findings.explain(look(self._standings, set()), self.generation, self._nodes, now)

    def _stand(self, record: RankRecord, report: NodeReport, now: float) -> Standing:
        before = self._standings.get(record.rank)
        idle = _idle_seconds(record, before, now)
        stalls = before.stalls if before is not None else ()
        if idle >= STALL_SECONDS and not training_waits(record):
            stalls = _with_stall(stalls, now, idle)
        elif before is not None and before.idle_seconds >= STALL_SECONDS and not training_waits(before.record):
            # Over since: it may have ended as late as the rank moved.
            moved = now - idle
            stalls = _with_stall(stalls, moved, before.idle_seconds + moved - before.taken)
        earlier = before
        if before is not None and before.earlier is not None:
            if now - before.earlier.taken < _BACK_SECONDS:
                earlier = before.earlier
            before.earlier = None  # else the chain would hold all reports there ever were
        recent = recent_of(record) or (before.recent if before is not None else {})
        stands = before is not None and idle >= now - before.taken
        then = before.cpu_seconds_then if stands and before is not None else None
        if then is None and record.process is not None:
            then = record.process.cpu_seconds
        stopped = _stopped_since(record, before, now)
        return Standing(record, report.communicators, report.node, now, idle, recent, stalls, earlier, then, stopped)


def _with_stall(
    stalls: tuple[tuple[float, float], ...], until: float, seconds: float
) -> tuple[tuple[float, float], ...]:
    # Seen again while it lasts, the same stall is only longer.
    kept = [stall for stall in stalls if stall[0] <= until - seconds]
    return (*kept[-_STALLS_KEPT:], (until, seconds))


def _stopped_since(record: RankRecord, before: Standing | None, now: float) -> float | None:
    """Since when a rank's process has been seen to be stopped, and to use no processor."""
    process = record.process
    if process is None or process.letter != STOPPED:
        return None
    if before is None or before.stopped_since is None or before.record.process is None:
        return now
    rests = process.cpu_seconds == before.record.process.cpu_seconds
    return before.stopped_since if rests else now


def _idle_seconds(record: RankRecord, before: Standing | None, now: float) -> float:
    """How long a rank has not moved; if that is not told, of transfers only their number is known, so since it grew."""
    if record.idle_seconds is not None:
        return min(record.idle_seconds, record.step_age_seconds)
    idle = record.step_age_seconds
    if before is not None and pending_of(before.record):
        idle = min(idle, now - before.taken)  # it was inside
    for place in record.collectives:
        if place.last is not None:
            idle = min(idle, place.last.age_seconds)
    if not record.channels:
        return idle
    for channel in record.channels:
        for operation in channel.pending:
            idle = min(idle, operation.age_seconds)
    if before is None:
        return idle
    if _transfers(before.record) != _transfers(record):
        return 0.0
    return min(idle, before.idle_seconds + now - before.taken)


def _transfers(record: RankRecord) -> int:
    return sum(channel.sends_entered + channel.receives_entered for channel in record.channels)
