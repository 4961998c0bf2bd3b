"""The controller's side of detection: reports of the running generation go in, verdicts with evidence come out.

The judges themselves are pure (`detect/`). Here is what is round them: which generation they watch, the clock, the look
at the suspects from outside, and the probes between nodes. Evidence is for people, and never waited for longer than a
moment; only of links do probes decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from ftrain_launcher.background import Background
from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.divergence import Divergence
from ftrain_launcher.detect.links import Pair, best_of, judge_matrix
from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.detect.slow_links import Slowed
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.events import Detect, Diagnosed
from ftrain_launcher.link_matrix import LinkMatrix
from ftrain_launcher.membership import Phase
from ftrain_launcher.messages import ReplicaDigests
from ftrain_launcher.questions import Finding, Inspect, Inspected
from ftrain_launcher.requests import Requests
from ftrain_snapshot.messages import LinkFigure

JUDGE_SECONDS = 0.1
"""Between two looks at what has been reported."""
INSPECT_SECONDS = 2.5
"""A look at a worker takes a tenth of a second, on a busy machine more."""
RANKS_INSPECTED_MAX = 8
QUIET_PROBE_SECONDS = 60.0
"""Between two measurements of links while nothing is wrong."""
ROUNDS_MAX = 3
"""So often is a link measured before it is named."""
_BY_STACK = (Kind.HANG, Kind.MISMATCH, Kind.SLOW)
"""What the suspects' stacks say more about."""


class _Watched:
    """The judges of one generation."""

    def __init__(self, generation: int, nodes: dict[int, str]) -> None:
        self.generation = generation
        self.pace = Pace(generation, nodes)
        self.detector = Detector(generation, nodes, (self.pace,))
        self.replicas = Divergence(generation, nodes)
        self.explained: tuple[int, ...] = ()
        """The suspects of the mismatch that was told of when all had ended."""


class Detection:
    """One job's. ``submit`` is given what was found."""

    def __init__(self, coordinator: Coordinator, requests: Requests, submit: Callable[[Diagnosed], None]) -> None:
        self._coordinator, self._requests, self._submit = coordinator, requests, submit
        self._links = LinkMatrix(coordinator, requests)
        self._watched: _Watched | None = None
        self._background = Background()

    async def run(self) -> None:
        """Judge what was reported, for ever; measure links when all is quiet."""
        loop = asyncio.get_running_loop()
        measured = loop.time()
        while True:
            await asyncio.sleep(JUDGE_SECONDS)
            watched = self._watched
            if watched is None or self._current(watched.generation) is not watched:
                continue
            self._judge(watched)
            if loop.time() - measured >= QUIET_PROBE_SECONDS and not self._background.tasks:
                measured = loop.time()
                self._background.begin(self._links.remember())

    async def close(self) -> None:
        """End what is under way."""
        await self._background.close()

    # ---- what is reported

    def take(self, report: NodeReport) -> None:
        """An agent has read its workers' rings."""
        watched = self._current(report.generation)
        if watched is None:
            return
        watched.detector.take(report, time.monotonic())
        if self._coordinator.phase is Phase.RUNNING:
            self._judge(watched)
        else:
            self._explain(watched)

    def take_digests(self, message: ReplicaDigests) -> None:
        """A rank has looked at what it shares with others."""
        watched = self._current(message.generation)
        if watched is not None:
            self._tell(watched.replicas.take(message.rank, message.step, message.digests, time.monotonic()))

    def _current(self, generation: int) -> _Watched | None:
        """The judges of the generation that runs, if that is the one; also while it is being stopped."""
        job = self._coordinator
        if job.config.detect is Detect.OFF or job.phase not in (Phase.RUNNING, Phase.STOPPING):
            return None
        if generation != job.formed or generation == 0:
            return None
        if self._watched is None or self._watched.generation != generation:
            self._watched = _Watched(generation, {number: rank.node for number, rank in job.ranks.items()})
        return self._watched

    # ---- what is found

    def _judge(self, watched: _Watched) -> None:
        if self._coordinator.phase is not Phase.RUNNING:
            return
        now = time.monotonic()
        self._tell([*watched.detector.verdicts(now), *watched.replicas.verdicts(now)])
        for slowed in watched.pace.slowed():
            self._background.begin(self._look_for_link(watched.generation, slowed))

    def _explain(self, watched: _Watched) -> None:
        """The last words of the ranks may say that it was a mismatch; nobody is left to be looked at."""
        verdict = watched.detector.explain(time.monotonic())
        if verdict is not None and verdict.ranks != watched.explained:
            watched.explained = verdict.ranks
            self._submit(Diagnosed(verdict))

    def _tell(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.kind is Kind.COMMUNICATION_HANG:
                self._background.begin(self._probe_and_submit(verdict))
            elif verdict.kind in _BY_STACK and verdict.ranks:
                self._background.begin(self._look_and_submit(verdict))
            else:
                self._submit(Diagnosed(verdict))

    # ---- links

    async def _probe_and_submit(self, verdict: Verdict) -> None:
        """All have entered and none leaves: if a link is cut, that is why."""
        found = await self._suspect_link(verdict.generation, self._links.names(), hangs=True)
        if found is not None:
            verdict = msgspec.structs.replace(
                verdict,
                ranks=(),
                nodes=found.nodes,
                links=found.links,
                confidence=found.confidence,
                sentence=f"{found.sentence}; {verdict.sentence}",
                details={**verdict.details, **found.details},
            )
        self._submit(Diagnosed(verdict))

    async def _look_for_link(self, generation: int, slowed: Slowed) -> None:
        """Communication has become slow: it is a link's fault only if the probes say so."""
        ranks = self._coordinator.ranks
        nodes = {ranks[member].node for member in slowed.communicator.members if member in ranks}
        positions = [position for position, name in self._links.names().items() if name in nodes]
        found = await self._suspect_link(generation, positions, hangs=False)
        if found is not None:
            told = msgspec.structs.replace(found, sentence=f"{found.sentence}; {slowed.sentence}", step=slowed.step)
            self._submit(Diagnosed(told))

    async def _suspect_link(self, generation: int, positions: Iterable[int], *, hangs: bool) -> Verdict | None:
        """Measure, and again if something looks bad: on a busy machine a probe may come late, but not each time."""
        measured: dict[Pair, LinkFigure] = {}
        found: Verdict | None = None
        for _ in range(ROUNDS_MAX):
            measured = best_of(measured, await self._links.measure(positions))
            found = judge_matrix(measured, self._links.quiet, self._links.names(), generation, hangs=hangs)
            if found is None:
                break
        return found

    # ---- suspects

    async def _look_and_submit(self, verdict: Verdict) -> None:
        details = dict(verdict.details)
        try:
            details.update(await self._look_at(verdict.ranks[:RANKS_INSPECTED_MAX]))
        finally:  # whatever becomes of the look, the verdict holds
            self._submit(Diagnosed(msgspec.structs.replace(verdict, details=details)))

    async def _look_at(self, ranks: Iterable[int]) -> dict[str, str]:
        by_node: dict[str, list[int]] = defaultdict(list)
        for number in ranks:
            rank = self._coordinator.ranks.get(number)
            if rank is not None:
                by_node[rank.node].append(number)
        found = await asyncio.gather(*(self._look(node, tuple(ranks)) for node, ranks in by_node.items()))
        details = {}
        for finding in (finding for findings in found for finding in findings):
            details[f"process of rank {finding.rank}"] = finding.process
            details[f"stack of rank {finding.rank}"] = finding.stack or f"(none: {finding.no_stack})"
        return details

    async def _look(self, node: str, ranks: tuple[int, ...]) -> tuple[Finding, ...]:
        answer = await self._requests.ask(node, lambda number: Inspect(number, ranks), Inspected, INSPECT_SECONDS)
        if isinstance(answer, str):
            return tuple(Finding(rank, "not known", no_stack=answer) for rank in ranks)
        return answer.findings
