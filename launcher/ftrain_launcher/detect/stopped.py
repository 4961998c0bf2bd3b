"""Pure: ranks that were stopped (SIGSTOP) where no operation tells that others wait.

In the beginning, before a generation's first step, they connect to each other, or ask the store, and no ring shows
that; when all others have ended, only the job waits. So a process that stands still for a while is enough. In between
it is only if nobody is in an operation, uses a processor or goes on in any other way: they may wait in the store. Else
who keeps nobody waiting may rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ftrain_launcher.detect import wording
from ftrain_launcher.detect.records import NodeReport, RankRecord
from ftrain_launcher.detect.timeouts import STALE_SECONDS
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.detect.waits import pending_of

STOPPED_SECONDS = 1.0
STILL_SECONDS = 5.0
"""In between, and for so long must nobody have gone on."""
_LETTER = "T"


class Stopped:
    """One generation's; ``nodes`` says on which node each rank is."""

    def __init__(self, generation: int, nodes: Mapping[int, str]) -> None:
        self._generation, self._nodes = generation, nodes
        self._since: dict[str, dict[int, float]] = {}
        """By node that has such: since when ranks have been seen to stand still."""
        self._of: dict[str, set[int]] = defaultdict(set)
        """By node: its ranks."""
        for rank, node in nodes.items():
            self._of[node].add(rank)
        self._trained: dict[str, set[int]] = defaultdict(set)
        """By node: those among them, and all others, that were seen with a step done."""
        self._ended: dict[str, set[int]] = {}
        """By node: those that had done a step, and have ended since, or are no more."""
        self._went_on: dict[str, tuple[float, float]] = {}
        """By node: when it was last heard, and when any of its ranks that are not stopped went on."""
        self._told: tuple[int, ...] = ()

    def take(self, report: NodeReport, now: float) -> None:
        """A node's report has come."""
        if report.generation != self._generation:
            return
        stands = [r.rank for r in report.ranks if r.process is not None and r.process.letter == _LETTER]
        before = self._since.pop(report.node, {})
        if stands or report.stopped:
            self._since[report.node] = {rank: before.get(rank, now) for rank in (*stands, *report.stopped)}
        is_blind = not set(report.stopped).issuperset(report.unrecorded)  # who is not seen may go on
        went_on = (_went_on(r, now) for r in report.ranks if r.rank not in stands)
        self._went_on[report.node] = now, now if is_blind else max(went_on, default=float("-inf"))
        trained = self._trained[report.node]
        trained.update(record.rank for record in report.ranks if record.step >= 0)
        if not report.ranks and not report.unrecorded:
            trained.update(self._of[report.node])  # all have ended, also if that was not seen
        self._ended[report.node] = trained - {r.rank for r in report.ranks if not r.ended} - set(report.unrecorded)

    def verdicts(self, now: float) -> list[Verdict]:
        """At most one, with all that stand still; told again when these change."""
        since = {rank: then for ranks in self._since.values() for rank, then in ranks.items()}
        ranks = tuple(sorted(rank for rank, then in since.items() if now - then >= STOPPED_SECONDS))
        early = tuple(rank for rank in ranks if rank not in self._trained[self._nodes[rank]])
        last = () if early else self._last(ranks)
        ranks = early or last or self._among_sleepers(ranks, since, now)
        if len(ranks) == len(self._nodes) > 1:
            ranks = ()  # who suspends a session stops them all
        if ranks == self._told:
            return []
        self._told = ranks
        if not ranks:
            return []
        seconds = now - min(since[rank] for rank in ranks)
        have = "have" if len(ranks) > 1 else "has"
        where = (early and "before the first step") or (last and "when all others had ended") or "and no rank goes on"
        who = f"{wording.ranks(ranks, self._nodes)} {have} been stopped (T) for {seconds:.1f} s, {where}"
        verdict = Verdict(
            kind=Kind.HANG, generation=self._generation, ranks=ranks, confidence=0.99, sentence=who, seconds=seconds
        )
        return [verdict]

    def _last(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Those of them that have not ended, if all others have."""
        if not ranks:
            return ()  # this is asked at each report of each node
        ended = set().union(*self._ended.values())
        is_over = bool(ended) and ended.union(ranks) == set(self._nodes)
        return tuple(rank for rank in ranks if rank not in ended) if is_over else ()

    def _among_sleepers(self, ranks: tuple[int, ...], since: Mapping[int, float], now: float) -> tuple[int, ...]:
        """Those that have been stopped for long, while nobody went on."""
        ranks = tuple(rank for rank in ranks if now - since[rank] >= STILL_SECONDS)
        if not ranks or len(self._went_on) < len(self._of):
            return ()
        heard = min(heard for heard, _ in self._went_on.values())
        went_on = max(then for _, then in self._went_on.values())
        return ranks if now - heard <= STALE_SECONDS and now - went_on >= STILL_SECONDS else ()


def _went_on(record: RankRecord, now: float) -> float:
    """When a rank last did anything; one that is in an operation, or runs, does so now."""
    if pending_of(record) or (record.process is not None and record.process.letter == "R"):
        return now
    ages = (record.idle_seconds, record.beside_idle_seconds, record.step_age_seconds)
    return now - min(age for age in ages if age is not None)
