"""The controller's side of detection: reports of the running generation go in, verdicts with evidence come out.

The judges themselves are pure (`detect/`). Here is what is round them: which generation they watch, the clock, the look
at the suspects from outside, and the probes between nodes. Evidence is for people, and never waited for longer than a
moment; only of links do probes decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ftrain_launcher.background import Background
from ftrain_launcher.control.link_matrix import LinkMatrix
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.detector import Detector, seconds_between_looks
from ftrain_launcher.detect.divergence import Divergence
from ftrain_launcher.detect.links import ALL_PAIRS_MAX, Matrix, judge_matrix
from ftrain_launcher.detect.lossy import SentAgain
from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.patience import Patience, WentOn
from ftrain_launcher.detect.reached import judge_reach
from ftrain_launcher.detect.records import NodeReport
from ftrain_launcher.detect.slow_links import Slowed
from ftrain_launcher.detect.stopped import Stopped
from ftrain_launcher.detect.verdict import Kind, Verdict
from ftrain_launcher.from_agent import ReplicaDigests
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import Detect, Diagnosed, QuickAgain
from ftrain_launcher.job.membership import NodeState, Phase
from ftrain_launcher.questions import Finding, Inspect, Inspected

JUDGE_SECONDS = 0.1
"""Between two looks at what has been reported."""
AWAY_SECONDS = 0.02
"""Between two looks whether a node that was not heard is given up: what was found is part of that incident."""
INSPECT_SECONDS = 2.5
"""A look at a worker takes a tenth of a second, on a busy machine more."""
RANKS_INSPECTED_MAX = 8
QUIET_PROBE_SECONDS = 60.0
"""Between two measurements of links while nothing is wrong."""
FIRST_PROBE_SECONDS, NEXT_PROBE_SECONDS = 1.0, 3.0
"""After a generation has begun to be watched: then connections stand. And until it is known what is usual."""
ROUNDS, ROUNDS_OF_HANG = 3, 2
"""So often is a link measured before it is named. A hang is evidence by itself."""
UNEXPLAINED_SECONDS = 10.0
"""So long must an operation have lasted that all have entered, where no link is found that explains it."""
EXPLAIN_FACTOR = 10.0
"""So many times the least time between two looks at a graph while ranks leave: each looks at all that they tell."""
_BY_STACK = (Kind.HANG, Kind.MISMATCH, Kind.SLOW)
"""What the suspects' stacks say more about."""


_Found = Diagnosed | QuickAgain | WentOn


class _Watched:
    """The judges of one generation."""

    def __init__(self, generation: int, nodes: dict[int, str], patience: Patience) -> None:
        self.generation = generation
        self.pace = Pace(generation, nodes)
        self.detector = Detector(generation, nodes, (self.pace, Stopped(generation, nodes)), patience)
        self.replicas = Divergence(generation, nodes)
        self.probe_at = time.monotonic() + FIRST_PROBE_SECONDS
        self.steps: dict[int, int] = {}
        """The newest step of each rank."""
        self.away: set[int] = set()
        """Positions of the nodes that are not heard just now."""
        self.explained: tuple[int, ...] = ()
        """The suspects of the mismatch that was told of when all had ended."""
        self.judge_at = self.explain_at = float("-inf")
        """When reports may be looked at again: of very many nodes, not each on its own."""
        self.unheard = set(nodes.values())
        """Nodes that have not said their last word."""
        self.last_words = False
        """Some were said since they were last looked at."""
        self._look_seconds = seconds_between_looks(len(nodes))

    def take(self, report: NodeReport) -> None:
        """An agent has read its workers' rings."""
        self.detector.take(report, time.monotonic())
        self.steps.update((record.rank, record.step) for record in report.ranks)

    def judged(self, now: float) -> None:
        """The reports have been looked at."""
        self.judge_at = now + self._look_seconds

    def take_last_words(self, node: str) -> None:
        """A node's report has come while all leave."""
        self.last_words = True
        if node in self.unheard:
            self.unheard.discard(node)
            if not self.unheard:
                self.explain_at = float("-inf")

    def may_explain(self, now: float) -> bool:
        """Whether to look at the last words that were said: all, or some after a while."""
        return self.last_words and now >= self.explain_at

    def explain(self, now: float) -> Verdict | None:
        """What the last words show."""
        self.last_words, self.explain_at = False, now + EXPLAIN_FACTOR * self._look_seconds
        return self.detector.explain(now)

    @property
    def slowest_step(self) -> int:
        """That all ranks have made."""
        return min(self.steps.values(), default=-1)


class Detection:
    """One job's. ``submit`` is given what was found."""

    def __init__(self, coordinator: Coordinator, requests: Requests, submit: Callable[[_Found], None]) -> None:
        self._coordinator, self._requests, self._submit = coordinator, requests, submit
        self._links = LinkMatrix(coordinator, requests)
        self._watched: _Watched | None = None
        self._looking_for_links = self._probing_hang = False
        self._background = Background()

    async def run(self) -> None:
        """Judge what was reported, for ever; measure links when all is quiet."""
        while True:
            await asyncio.sleep(JUDGE_SECONDS)
            watched = self._watched
            if watched is None or self._current(watched.generation) is not watched:
                continue
            self._judge(watched)
            if self._coordinator.phase is Phase.STOPPING:
                self._explain(watched)
            self._notice_away(watched)
            if time.monotonic() >= watched.probe_at and not self._background.tasks:
                seconds = QUIET_PROBE_SECONDS if self._links.knows_quiet else NEXT_PROBE_SECONDS
                watched.probe_at = time.monotonic() + seconds
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
        watched.take(report)
        if self._coordinator.phase is not Phase.RUNNING:
            watched.take_last_words(report.node)
            self._explain(watched)
            self._tell_who_went_on(watched)
        elif time.monotonic() >= watched.judge_at:  # else `run` looks, in a moment
            self._judge(watched)

    def take_digests(self, message: ReplicaDigests) -> None:
        """A rank has looked at what it shares with others."""
        watched = self._current(message.generation)
        if watched is not None:
            self._tell(watched, watched.replicas.take(message.rank, message.step, message.digests, time.monotonic()))

    def _current(self, generation: int) -> _Watched | None:
        """The judges of the generation that runs, if that is the one; also while it is being stopped."""
        job = self._coordinator
        if job.config.detect is Detect.OFF or job.phase not in (Phase.RUNNING, Phase.STOPPING):
            return None
        if generation != job.formed or generation == 0:
            return None
        if self._watched is None or self._watched.generation != generation:
            nodes = {number: rank.node for number, rank in job.ranks.items()}
            self._watched = _Watched(generation, nodes, job.patience)
        return self._watched

    # ---- what is found

    def _judge(self, watched: _Watched) -> None:
        if self._coordinator.phase is not Phase.RUNNING:
            return
        now = time.monotonic()
        watched.judged(now)
        self._tell(watched, [*watched.detector.verdicts(now), *watched.replicas.verdicts(now)])
        for rank, step in watched.pace.quick_again():
            self._submit(QuickAgain(watched.generation, rank, step))
        self._tell_who_went_on(watched)
        doubts = watched.pace.doubts()
        if doubts and not self._looking_for_links:  # who is not heard now asks again
            self._looking_for_links = True
            self._background.begin(self._look_for_link(watched.generation, doubts))

    def _tell_who_went_on(self, watched: _Watched) -> None:
        for ended in watched.detector.went_on():
            self._submit(ended)

    def _explain(self, watched: _Watched) -> None:
        """The last words of the ranks may say that it was a mismatch; nobody is left to be looked at."""
        now = time.monotonic()
        verdict = watched.explain(now) if watched.may_explain(now) else None
        if verdict is not None and verdict.ranks != watched.explained:
            watched.explained = verdict.ranks
            self._submit(Diagnosed(verdict))

    def _tell(self, watched: _Watched, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.kind is Kind.COMMUNICATION_HANG:
                self._probe_hang(watched, verdict)
            elif verdict.kind in _BY_STACK and verdict.ranks:
                self._background.begin(self._look_and_submit(watched, verdict))
            else:
                self._submit(Diagnosed(verdict))

    # ---- links

    def _probe_hang(self, watched: _Watched, verdict: Verdict) -> None:
        """One at a time: over a slow line members leave one by one, each a new finding, and probes of all links that
        stand in line would make the first wait for the last. What still hangs after them is found again."""
        if self._probing_hang:
            watched.detector.forget(verdict.kind)
            return
        self._probing_hang = True
        self._background.begin(self._probe_and_submit(watched, verdict))

    async def _probe_and_submit(self, watched: _Watched, verdict: Verdict) -> None:
        """All have entered and none leaves: if a link is cut, that is why. What goes on meanwhile was none: over a link
        that loses segments, TCP rests for seconds."""
        step, began = watched.slowest_step, time.monotonic()
        try:
            found = await self._suspect_link(verdict.generation, self._links.names(), hangs=True)
            holds = found is not None or await self._lasts(watched, verdict, began, step)
        finally:
            self._probing_hang = False
        if not holds or watched.slowest_step > step or watched.detector.has_passed(verdict):
            watched.detector.forget(verdict.kind)
            if found is not None:
                slow, sentence = Kind.COMMUNICATION_SLOW, f"{found.sentence}; {verdict.sentence}, and then went on"
                found = msgspec.structs.replace(found, kind=slow, sentence=sentence, step=verdict.step)
                self._submit(Diagnosed(found))
            return
        if found is None:
            sentence = f"{verdict.sentence}: a link or a node is suspect, and no link that was probed stands out"
            verdict = msgspec.structs.replace(verdict, sentence=sentence)
        else:
            verdict = msgspec.structs.replace(
                verdict,
                ranks=(),
                nodes=found.nodes,
                links=found.links,
                confidence=found.confidence,
                sentence=f"{found.sentence}; {verdict.sentence}",
                details={**verdict.details, **found.details},
            )
        self._submit(Diagnosed(_lasting(verdict, began)))

    async def _lasts(self, watched: _Watched, verdict: Verdict, began: float, step: int) -> bool:
        """Whether what hangs and no link explains goes on for long. Else a thread of the backend's may have had no
        processor: the kernel's count of the thread that trains tells nothing of that."""
        while watched.slowest_step <= step and not watched.detector.has_passed(verdict):
            if verdict.seconds + time.monotonic() - began >= UNEXPLAINED_SECONDS:
                return True
            if self._current(verdict.generation) is not watched or self._coordinator.phase is not Phase.RUNNING:
                return False
            await asyncio.sleep(JUDGE_SECONDS)
        return False

    async def _look_for_link(self, generation: int, doubts: Sequence[Slowed | SentAgain]) -> None:
        """Communication has become slow, or much is sent again: it is a link's fault only if the probes say so."""
        try:
            positions = self._between_hosts(self._concerned(doubts))
            found = await self._suspect_link(generation, positions, hangs=False) if positions else None
        finally:
            self._looking_for_links = False
        if found is not None:
            sentence = f"{found.sentence}; {doubts[0].sentence}"
            self._submit(Diagnosed(msgspec.structs.replace(found, sentence=sentence, step=doubts[0].step)))

    def _concerned(self, doubts: Sequence[Slowed | SentAgain]) -> list[int]:
        """The positions of a slow communicator's nodes; all, if a host sends much again: to whom is not known."""
        names, ranks = self._links.names(), self._coordinator.ranks
        slowed = [doubt for doubt in doubts if isinstance(doubt, Slowed)]
        members = {member for one in slowed for member in one.communicator.members}
        nodes = {ranks[member].node for member in members if member in ranks}
        return [position for position, name in names.items() if name in nodes or len(slowed) < len(doubts)]

    def _notice_away(self, watched: _Watched) -> None:
        """Who is not heard any more may be reached by others."""
        names, nodes = self._links.names(), self._coordinator.nodes
        away = {position for position, name in names.items() if nodes[name].state is NodeState.AWAY}
        for position in away - watched.away if self._between_hosts(names) else ():
            self._background.begin(self._look_for_cut(watched.generation, position))
        watched.away = away

    async def _look_for_cut(self, generation: int, position: int) -> None:
        """Whether only a link to a node is cut. It is said once the node has not come back in time, with its loss."""
        names = self._links.names()
        node = self._coordinator.nodes[names[position]]
        found = judge_reach(await self._links.towards(position), names, generation)
        while found is not None and node.state is NodeState.AWAY:
            await asyncio.sleep(AWAY_SECONDS)
        if found is not None and node.gone:
            self._submit(Diagnosed(found))

    def _between_hosts(self, positions: Iterable[int]) -> list[int]:
        """These positions; none if all are on one host: what is slow there are its processors, and no link."""
        found, names = list(positions), self._links.names()
        hosts = {self._coordinator.nodes[names[position]].host for position in found}
        return found if len(hosts) > 1 else []

    async def _suspect_link(self, generation: int, positions: Iterable[int], *, hangs: bool) -> Verdict | None:
        """Measure, and again if something looks bad: on a busy machine a probe may come late, but not each time."""
        positions, names, rounds = list(positions), self._links.names(), list[Matrix]()
        found: Verdict | None = None
        while len(rounds) < (ROUNDS_OF_HANG if hangs else ROUNDS):
            rounds.append(await self._links.measure(positions))
            found = judge_matrix(rounds, self._links.quiet(), names, generation, hangs=hangs)
            if found is None and len(rounds) == 1:
                break
        return found

    async def _link_behind(self, verdict: Verdict) -> Verdict:
        """What a rank does beside its operations needs the network, too: with a bad link it seems slow. Then that link
        is named instead."""
        names, ranks = self._links.names(), self._coordinator.ranks
        nodes = {ranks[number].node for number in verdict.ranks if number in ranks}
        own = [position for position, name in names.items() if name in nodes]
        if verdict.kind is not Kind.SLOW or not own or not self._between_hosts(names):
            return verdict
        others = sorted(names.keys() - own, key=lambda position: abs(position - own[0]))
        found = await self._suspect_link(verdict.generation, [*own, *others][:ALL_PAIRS_MAX], hangs=False)
        ends = {end for link in found.links for end in (link.source, link.destination)} if found is not None else set()
        if found is None or not (nodes & set(found.nodes) or ends & set(own)):
            return verdict
        return msgspec.structs.replace(found, sentence=f"{found.sentence}; {verdict.sentence}", step=verdict.step)

    # ---- suspects

    async def _look_and_submit(self, watched: _Watched, verdict: Verdict) -> None:
        details: dict[str, str] = {}
        began = time.monotonic()
        try:
            looks = self._look_at(verdict.ranks[:RANKS_INSPECTED_MAX]), self._link_behind(verdict)
            details, verdict = await asyncio.gather(*looks)
        finally:  # whatever becomes of the look, the verdict holds, if it still does
            if watched.detector.has_passed(verdict):
                watched.detector.forget(verdict.kind)
            else:
                verdict = msgspec.structs.replace(verdict, details={**verdict.details, **details})
                self._submit(Diagnosed(_lasting(verdict, began)))

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


def _lasting(verdict: Verdict, found: float) -> Verdict:
    """A verdict of the moment ``found``, as it is now: it took a while to look into it, and that is when it is told."""
    lasted = verdict.seconds + time.monotonic() - found
    return msgspec.structs.replace(verdict, seconds=lasted) if verdict.seconds else verdict
