"""The judge of pace: finds ranks that are slow, and where communication has become slow, from the steps of all ranks.

A face for `slow`, `slow_links` and `lossy` as `detector.Judge`: reports go in, they are put side by side (`aligned`),
verdicts come out. What slow or lossy communication calls for first is a probe of the links; who asks for it gives it to
`judge_matrix`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain_launcher.detect.aligned import Aligned
from ftrain_launcher.detect.lossy import LossyNodes, SentAgain
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.detect.slow import SlowRanks
from ftrain_launcher.detect.slow_links import Slowed, SlowLinks
from ftrain_launcher.detect.verdict import Verdict

REPEAT_SECONDS = 30.0
"""A rank that stays slow is told of again so often: what is done about it depends on how long it lasts."""


class Pace:
    """One generation's. ``nodes`` says on which node each rank is."""

    def __init__(self, generation: int, nodes: Mapping[int, str]) -> None:
        self._generation = generation
        self._aligned = Aligned(len(nodes))
        self._ranks = SlowRanks(generation, nodes, self._aligned.communicators)
        self._links = SlowLinks(self._aligned.communicators)
        self._lossy = LossyNodes()
        self._new: list[Verdict] = []
        self._standing: dict[int, tuple[Verdict, float]] = {}
        """By rank: the verdict on it that holds, and when it was last told."""
        self._gone: list[tuple[int, int]] = []
        self._doubts: list[Slowed | SentAgain] = []

    def take(self, report: NodeReport, now: float) -> None:
        """A node's report has come; one of another generation is dropped."""
        if report.generation != self._generation:
            return
        numbers = self._aligned.numbers(report)
        self._ranks.learn(report, numbers)
        for step in self._aligned.take(report, numbers, now):
            change = self._ranks.take(step)
            self._new += change.named
            self._gone += [(rank, step.number) for rank in change.gone]
            for rank in change.gone:
                self._standing.pop(rank, None)
            self._doubts += self._links.take(step, now)
        if (loses := self._lossy.take(report, now)) is not None:
            self._doubts.append(loses)

    def verdicts(self, now: float) -> list[Verdict]:
        """Ranks that have become slow, and every ``REPEAT_SECONDS`` those that still are."""
        new, self._new = self._new, []
        new += [verdict for verdict, told in self._standing.values() if now - told >= REPEAT_SECONDS]
        self._standing.update((rank, (verdict, now)) for verdict in new for rank in verdict.ranks)
        return new

    def quick_again(self) -> list[tuple[int, int]]:
        """Ranks that a verdict named and that keep up with their peers again, with the step; each is told once."""
        gone, self._gone = self._gone, []
        return gone

    def doubts(self) -> list[Slowed | SentAgain]:
        """Communicators that have become slow, and nodes that send much again, for which probes are wanted; told again
        while that lasts."""
        doubts, self._doubts = self._doubts, []
        return doubts
