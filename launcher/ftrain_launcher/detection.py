"""The controller's side of detection: reports of the running generation go in, verdicts with evidence come out.

The detector itself is pure (`detect/`). Here is what is round it: which generation it watches, the clock, and the
look at the suspects from outside, which a verdict carries for people and never waits for longer than a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

import msgspec

from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.events import Detect, Diagnosed
from ftrain_launcher.membership import Phase
from ftrain_launcher.questions import Finding, Inspect, Inspected
from ftrain_launcher.requests import Requests

INSPECT_SECONDS = 2.5
"""A look at a worker takes a tenth of a second, on a busy machine more."""
RANKS_INSPECTED_MAX = 8
_BY_STACK = (Kind.HANG, Kind.MISMATCH, Kind.COMMUNICATION_HANG, Kind.SLOW)
"""What a stack says more about."""


class Detection:
    """One job's. ``submit`` is given what was found."""

    def __init__(self, coordinator: Coordinator, requests: Requests, submit: Callable[[Diagnosed], None]) -> None:
        self._coordinator, self._requests, self._submit = coordinator, requests, submit
        self._detector: Detector | None = None
        self._explained: tuple[int, tuple[int, ...]] = (0, ())
        self._looks: set[asyncio.Task[None]] = set()

    def take(self, report: NodeReport) -> None:
        """An agent has read its workers' rings."""
        detector = self._current(report.generation)
        if detector is None:
            return
        now = time.monotonic()
        detector.take(report, now)
        if self._coordinator.phase is Phase.STOPPING:
            self._explain(detector.explain(now))
            return
        for verdict in detector.verdicts(now):
            self._follow(verdict)

    def _explain(self, verdict: Verdict | None) -> None:
        """The last words of the ranks may say that it was a mismatch; nobody is left to be looked at."""
        if verdict is not None and self._explained != (verdict.generation, verdict.ranks):
            self._explained = (verdict.generation, verdict.ranks)
            self._submit(Diagnosed(verdict))

    async def close(self) -> None:
        """End the looks under way."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    def _current(self, generation: int) -> Detector | None:
        """The detector of the generation that runs, if that is the one; also while it is being stopped."""
        job = self._coordinator
        if job.config.detect is Detect.OFF or job.phase not in (Phase.RUNNING, Phase.STOPPING):
            return None
        if generation != job.formed or generation == 0:
            return None
        if self._detector is None or self._detector.generation != generation:
            self._detector = Detector(generation, {number: rank.node for number, rank in job.ranks.items()})
        return self._detector

    def _follow(self, verdict: Verdict) -> None:
        if verdict.kind not in _BY_STACK or not verdict.ranks:
            self._submit(Diagnosed(verdict))
            return
        look = asyncio.create_task(self._look_and_submit(verdict))
        self._looks.add(look)
        look.add_done_callback(self._looks.discard)

    async def _look_and_submit(self, verdict: Verdict) -> None:
        by_node: dict[str, list[int]] = defaultdict(list)
        for number in verdict.ranks[:RANKS_INSPECTED_MAX]:
            rank = self._coordinator.ranks.get(number)
            if rank is not None:
                by_node[rank.node].append(number)
        found = await asyncio.gather(*(self._look(node, tuple(ranks)) for node, ranks in by_node.items()))
        details = dict(verdict.details)
        for finding in (finding for findings in found for finding in findings):
            details[f"process of rank {finding.rank}"] = finding.process
            details[f"stack of rank {finding.rank}"] = finding.stack or f"(none: {finding.no_stack})"
        self._submit(Diagnosed(msgspec.structs.replace(verdict, details=details)))

    async def _look(self, node: str, ranks: tuple[int, ...]) -> tuple[Finding, ...]:
        answer = await self._requests.ask(node, lambda number: Inspect(number, ranks), Inspected, INSPECT_SECONDS)
        if isinstance(answer, str):
            return tuple(Finding(rank, "not known", no_stack=answer) for rank in ranks)
        return answer.findings
