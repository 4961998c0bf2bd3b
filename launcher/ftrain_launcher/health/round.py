"""The controller's part in checking nodes: who is asked for what, and when. What it says is judged apart (`judge`).

1. Each node measures itself; nodes of one host one after the other. Clocks are read meanwhile.
2. In rounds of disjoint pairs, daemons measure the links between them, both ways at once. What looks sick is measured
   once more, alone, and the better of both counts: one wait for a busy processor is no sick link.
3. In the first rounds again, health processes form groups of two and reduce something.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from ftrain.health.words import CheckNode, Failed, Hosting, HostPair, JoinPair, NodeFigures, PairFigures, RunPair, Task
from ftrain_launcher.clock import Offset
from ftrain_launcher.control.clock_reading import TIME_OF_DAY, offset_of
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.links import better
from ftrain_launcher.health.judge import Checkup, NodeHealth, State, judge
from ftrain_launcher.health.links import Pair, sick_links
from ftrain_launcher.health.process import seconds_max
from ftrain_launcher.health.schedule import apart, rounds
from ftrain_launcher.health.shown import shown
from ftrain_launcher.health.table import text
from ftrain_launcher.job.events import NodeChecked
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.questions import CheckHealth, Health, Probe, Probed
from ftrain_launcher.terminal import announce
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LinkFigure

ROUNDS_MAX = 15
"""With more than 16 nodes, links are a sample: each node meets so many others."""
ALL_REDUCE_ROUNDS = 2
PARTNERS_MAX = 3
"""Partners that a single node is measured with."""
BURST_BYTES = 1 << 20
PROBES = 8
PROBE_SECONDS = 1.0
_LATE_SECONDS = 5.0
"""For the answer to come in."""


class HealthRounds:
    """One job's."""

    def __init__(self, requests: Requests, nodes: Mapping[str, Node]) -> None:
        self._requests = requests
        self._nodes = nodes
        self._known: dict[str, NodeFigures] = {}
        """Of nodes that did not train when they were measured."""
        self._turn = asyncio.Lock()

    async def run(self, names: Sequence[str], *, training: bool) -> tuple[Checkup, list[NodeHealth]]:
        """Check these nodes, against each other and what is known of others; one round at a time.

        ``training``: nodes hold ranks meanwhile.
        """
        async with self._turn:
            hosts = {name: self._host(name) for name in self._nodes}
            checkup = Checkup(nodes={}, training=training, hosts=hosts)
            found, checkup.clocks = await asyncio.gather(self._check_nodes(names), self._read_clocks(names))
            checkup.nodes = {name: found[name] for name in names}
            sound = {name: figures for name, figures in checkup.nodes.items() if not isinstance(figures, str)}
            await self._check_links(list(sound), checkup)
            verdicts = judge(checkup, {name: f for name, f in self._known.items() if name not in names})
            if not training:
                self._known.update(sound)
            return checkup, verdicts

    async def _check_links(self, names: Sequence[str], checkup: Checkup) -> None:
        matches = rounds(names, ROUNDS_MAX)
        if len(names) == 1:
            matches = [[(names[0], partner)] for partner in self._partners(names[0])]
        for turn in self._turns(matches):
            await self._probe_pairs(turn, checkup.links)
        for pair in sorted({(min(way), max(way)) for way in sick_links(checkup.links)}):
            await self._probe_pairs([pair], checkup.links)
        for turn in self._turns(matches[: ALL_REDUCE_ROUNDS + len(names) % 2]):
            await self._reduce_pairs(turn, checkup)

    def _turns(self, matches: Iterable[Sequence[Pair]]) -> list[list[Pair]]:
        return [turn for pairs in matches for turn in apart(pairs, self._host)]

    def _partners(self, name: str) -> list[str]:
        """With whom one node is measured: members first."""
        able = [n for n in self._nodes.values() if n.name != name and n.state in (NodeState.ACTIVE, NodeState.IDLE)]
        return [n.name for n in sorted(able, key=lambda n: n.position is None)][:PARTNERS_MAX]

    def report(self, names: Sequence[str], tell: Callable[[NodeChecked], None]) -> asyncio.Task[None]:
        """Check these nodes, and tell of each, whatever happens to the check."""
        hosts = {self._host(name) for name in names}
        training = any(
            node.position is not None and not node.gone and node.hostname in hosts for node in self._nodes.values()
        )

        async def work() -> None:
            checkup, verdicts = await self.run(names, training=training)
            announce(text(shown("", checkup, verdicts, self._nodes)))
            for verdict in verdicts:
                tell(NodeChecked(verdict.node, verdict.state < State.BAD, "; ".join(verdict.reasons)))

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                for name in names:
                    tell(NodeChecked(name, False, f"the check failed: {error!r}"))

        task = asyncio.create_task(work())
        task.add_done_callback(done)
        return task

    def _host(self, name: str) -> str:
        return self._nodes[name].hostname

    # ---- each node

    async def _check_nodes(self, names: Iterable[str]) -> dict[str, NodeFigures | str]:
        by_host: dict[str, list[str]] = {}
        for name in names:
            by_host.setdefault(self._host(name), []).append(name)
        found: dict[str, NodeFigures | str] = {}

        async def check_host(on_host: list[str]) -> None:
            for name in on_host:
                answer = await self._do(name, CheckNode())
                found[name] = answer if isinstance(answer, NodeFigures | str) else "it answered something else"

        await asyncio.gather(*map(check_host, by_host.values()))
        return found

    async def _do(self, node: str, task: Task) -> object:
        """What came of a task; or why nothing did, in words."""
        health = await self._requests.ask(
            node, lambda number: CheckHealth(number, task), Health, seconds_max(task) + _LATE_SECONDS
        )
        if isinstance(health, str):
            return health
        return health.answer.reason if isinstance(health.answer, Failed) else health.answer

    async def _read_clocks(self, names: Sequence[str]) -> dict[str, Offset]:
        """From each node's time of day to one's own; without those that do not answer."""
        offsets = await asyncio.gather(*(offset_of(self._requests, name, TIME_OF_DAY) for name in names))
        return {name: offset for name, offset in zip(names, offsets, strict=True) if isinstance(offset, Offset)}

    # ---- pairs

    async def _probe_pairs(self, pairs: Iterable[Pair], links: dict[Pair, LinkFigure]) -> None:
        """Measure the links of disjoint pairs, both ways; better figures than those that are there replace them."""

        async def probe(source: str, destination: str) -> None:
            there = self._nodes[destination]
            peers = (Peer(0, destination, there.host, there.daemon_port),)
            answer = await self._requests.ask(
                source,
                lambda number: Probe(
                    request=number,
                    peers=peers,
                    count=PROBES,
                    burst_bytes=BURST_BYTES,
                    timeout_seconds=PROBE_SECONDS,
                ),
                Probed,
                2 * PROBE_SECONDS + _LATE_SECONDS,
            )
            failure = answer if isinstance(answer, str) else answer.failure
            figures = () if isinstance(answer, str) else answer.figures
            new = figures[0] if figures else LinkFigure(0, failure=failure or "nothing was measured")
            links[source, destination] = better(links.get((source, destination)), new)

        await asyncio.gather(*(probe(*way) for a, b in pairs for way in ((a, b), (b, a))))

    async def _reduce_pairs(self, pairs: Iterable[Pair], checkup: Checkup) -> None:
        """All-reduces of disjoint pairs; where a link is cut, there is no use in trying."""

        async def reduce(a: str, b: str) -> PairFigures | str:
            # Both are asked, so that both have begun, and have torch, before one waits for the other.
            hosting, _ = await asyncio.gather(*(self._do(node, HostPair(self._nodes[node].host)) for node in (a, b)))
            if not isinstance(hosting, Hosting):
                return str(hosting)
            ours, theirs = await asyncio.gather(
                self._do(a, RunPair()), self._do(b, JoinPair(self._nodes[a].host, hosting.port))
            )
            if not isinstance(ours, PairFigures) or not isinstance(theirs, PairFigures):
                return str(theirs if isinstance(ours, PairFigures) else ours)
            seconds = max(ours.all_reduce_seconds, theirs.all_reduce_seconds)
            return PairFigures(seconds, ours.exact and theirs.exact)

        whole = [p for p in pairs if not any(checkup.links[way].failure for way in (p, p[::-1]))]
        found = await asyncio.gather(*(reduce(a, b) for a, b in whole))
        checkup.pairs.update(zip(whole, found, strict=True))
