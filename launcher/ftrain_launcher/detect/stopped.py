"""Pure: ranks that were stopped (SIGSTOP) on their way to a generation's first step, or when all others have ended.

There no operation tells that others wait. In the beginning they connect to each other, or ask the store, and no ring
shows that; in the end only the job waits. So a process that stands still for a while is enough. In between it is not:
who keeps nobody waiting may rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain_launcher.detect import wording
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.detect.verdict import Kind, Verdict

STOPPED_SECONDS = 1.0
_LETTER = "T"


class Stopped:
    """One generation's; ``nodes`` says on which node each rank is."""

    def __init__(self, generation: int, nodes: Mapping[int, str]) -> None:
        self._generation, self._nodes = generation, nodes
        self._since: dict[str, dict[int, float]] = {}
        """By node: since when ranks have been seen to stand still."""
        self._trained: set[int] = set()
        """Those among them, and all others, that were seen with a step done."""
        self._ended: dict[str, set[int]] = {}
        """By node: those that had done a step, and have ended since, or are no more."""
        self._told: tuple[int, ...] = ()

    def take(self, report: NodeReport, now: float) -> None:
        """A node's report has come."""
        if report.generation != self._generation:
            return
        stands = [r.rank for r in report.ranks if r.process is not None and r.process.letter == _LETTER]
        before = self._since.get(report.node, {})
        self._since[report.node] = {rank: before.get(rank, now) for rank in (*stands, *report.stopped)}
        self._trained.update(record.rank for record in report.ranks if record.step >= 0)
        mine = {rank for rank in self._trained if self._nodes.get(rank) == report.node}
        self._ended[report.node] = mine - {r.rank for r in report.ranks if not r.ended} - set(report.unrecorded)

    def verdicts(self, now: float) -> list[Verdict]:
        """At most one, with all that stand still; told again when these change."""
        since = {rank: then for ranks in self._since.values() for rank, then in ranks.items()}
        ranks = tuple(sorted(rank for rank, then in since.items() if now - then >= STOPPED_SECONDS))
        early = tuple(rank for rank in ranks if rank not in self._trained)
        ended = set().union(*self._ended.values())
        is_over = bool(ended) and ended.union(ranks) == set(self._nodes)
        ranks = early or (tuple(rank for rank in ranks if rank not in ended) if is_over else ())
        if len(ranks) == len(self._nodes) > 1:
            ranks = ()  # who suspends a session stops them all
        if ranks == self._told:
            return []
        self._told = ranks
        if not ranks:
            return []
        seconds = now - min(since[rank] for rank in ranks)
        have = "have" if len(ranks) > 1 else "has"
        where = "before the first step" if early else "when all others had ended"
        who = f"{wording.ranks(ranks, self._nodes)} {have} been stopped (T) for {seconds:.1f} s, {where}"
        verdict = Verdict(
            kind=Kind.HANG, generation=self._generation, ranks=ranks, confidence=0.99, sentence=who, seconds=seconds
        )
        return [verdict]
