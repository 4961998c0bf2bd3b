"""The controller's matrix of links: it has daemons probe each other, and keeps what was measured in quiet times.

Round trips go to all at once, bursts to one after the other, and small (`ftrain_snapshot.probe`). There are many of
both, so that losses show: a hundred frames see one of 5 % nearly always.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable

from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.links import ALL_PAIRS_MAX, Matrix, Pair, best_of, probe_pairs
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.questions import Probe, Probed
from ftrain_snapshot.membership import Peer
from ftrain_snapshot.messages import LinkFigure

ROUND_TRIPS = 50
BURSTS, BURST_BYTES = 4, 256 << 10
PROBE_SECONDS = 1.0
"""For the round trips of one node, and for the bursts to each other one."""
APART_SECONDS = 0.5
"""Between two rounds."""
QUIET_ROUNDS = 5
"""The best of the last so many is what a link can do; fewer may all have met a busy processor."""


class LinkMatrix:
    """One job's."""

    def __init__(self, coordinator: Coordinator, requests: Requests) -> None:
        self._coordinator, self._requests = coordinator, requests
        self._quiet_rounds: deque[Matrix] = deque(maxlen=QUIET_ROUNDS)
        self._quiet_names: dict[int, str] = {}
        self._turn = asyncio.Lock()
        self._free_at = 0.0

    def names(self) -> dict[int, str]:
        """The nodes that hold positions."""
        return {position: name for position, name in enumerate(self._coordinator.positions) if name is not None}

    def quiet(self) -> dict[Pair, LinkFigure]:
        """What the links among the present nodes could do when nothing was wrong, as far as that is known."""
        return best_of(self._quiet_rounds) if self.knows_quiet else {}

    @property
    def knows_quiet(self) -> bool:
        """Whether enough was remembered."""
        return len(self._quiet_rounds) == QUIET_ROUNDS and self._quiet_names == self.names()

    async def measure(self, positions: Iterable[int]) -> dict[Pair, LinkFigure]:
        """The links among these positions now; what could not be asked for is missing. One round at a time."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            await asyncio.sleep(self._free_at - loop.time())
            by_source: dict[int, list[int]] = defaultdict(list)
            for source, destination in probe_pairs(list(positions)):
                by_source[source].append(destination)
            rows = await asyncio.gather(*(self._row(source, row) for source, row in by_source.items()))
            self._free_at = loop.time() + APART_SECONDS
        return {pair: figure for row in rows for pair, figure in row.items()}

    async def towards(self, position: int) -> dict[Pair, LinkFigure]:
        """Whether the others reach this node, which may be asked nothing itself: at most so many of them, those next
        to it and the first, beside which the controller is."""
        others = sorted(self.names().keys() - {position}, key=lambda other: (other > 0, abs(other - position)))
        rows = await asyncio.gather(*(self._row(other, [position], burst_bytes=0) for other in others[:ALL_PAIRS_MAX]))
        return {pair: figure for row in rows for pair, figure in row.items()}

    async def remember(self) -> None:
        """Nothing is wrong: measure all links, for comparison."""
        names = self.names()
        measured = await self.measure(names)
        if names != self._quiet_names:
            self._quiet_names = names
            self._quiet_rounds.clear()
        self._quiet_rounds.append({pair: figure for pair, figure in measured.items() if not figure.failure})

    async def _row(
        self, source: int, destinations: list[int], burst_bytes: int = BURST_BYTES
    ) -> dict[Pair, LinkFigure]:
        names, nodes = self.names(), self._coordinator.nodes
        there = [(position, nodes[names[position]]) for position in destinations if position in names]
        if source not in names or not there:
            return {}
        peers = tuple(Peer(position, node.name, node.host, node.daemon_port) for position, node in there)
        answer = await self._requests.ask(
            names[source],
            lambda number: Probe(
                request=number,
                peers=peers,
                count=ROUND_TRIPS,
                burst_bytes=burst_bytes,
                bursts=BURSTS,
                timeout_seconds=PROBE_SECONDS,
            ),
            Probed,
            (2 + len(peers)) * PROBE_SECONDS,
        )
        if isinstance(answer, str) or answer.failure:
            return {}
        return {(source, figure.destination): figure for figure in answer.figures}
