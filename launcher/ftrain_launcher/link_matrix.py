"""The controller's matrix of links: it has daemons probe each other, and keeps what was measured in quiet times.

Round trips go to all at once, bursts to one after the other, and small (`ftrain_snapshot.probe`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.detect.links import Pair, probe_pairs
from ftrain_launcher.questions import Probe, Probed
from ftrain_launcher.requests import Requests
from ftrain_snapshot.messages import LinkFigure, Peer

ROUND_TRIPS = 5
BURST_BYTES = 256 << 10
PROBE_SECONDS = 1.0
"""For the round trips of one node, and for each burst."""
APART_SECONDS = 1.5
"""Between two rounds: what a node has heard of others must be of this one (`links.HEARD_SECONDS_MAX`)."""


class LinkMatrix:
    """One job's. ``quiet`` is what its links could do when nothing was wrong."""

    def __init__(self, coordinator: Coordinator, requests: Requests) -> None:
        self._coordinator, self._requests = coordinator, requests
        self.quiet: dict[Pair, LinkFigure] = {}
        self._turn = asyncio.Lock()

    def names(self) -> dict[int, str]:
        """The nodes that hold positions."""
        return {position: name for position, name in enumerate(self._coordinator.positions) if name is not None}

    async def measure(self, positions: Iterable[int]) -> dict[Pair, LinkFigure]:
        """The links among these positions now; what could not be asked for is missing. One round at a time."""
        async with self._turn:
            by_source: dict[int, list[int]] = defaultdict(list)
            for source, destination in probe_pairs(list(positions)):
                by_source[source].append(destination)
            rows = await asyncio.gather(*(self._row(source, row) for source, row in by_source.items()))
            await asyncio.sleep(APART_SECONDS)
        return {pair: figure for row in rows for pair, figure in row.items()}

    async def remember(self) -> None:
        """Nothing is wrong: measure all links, for comparison."""
        measured = await self.measure(self.names())
        self.quiet = {pair: figure for pair, figure in measured.items() if not figure.failure}

    async def _row(self, source: int, destinations: list[int]) -> dict[Pair, LinkFigure]:
        names, nodes = self.names(), self._coordinator.nodes
        there = [(position, nodes[names[position]]) for position in destinations if position in names]
        if source not in names or not there:
            return {}
        peers = tuple(Peer(position, node.name, node.host, node.daemon_port) for position, node in there)
        answer = await self._requests.ask(
            names[source],
            lambda number: Probe(
                request=number, peers=peers, count=ROUND_TRIPS, burst_bytes=BURST_BYTES, timeout_seconds=PROBE_SECONDS
            ),
            Probed,
            (2 + len(peers)) * PROBE_SECONDS,
        )
        if isinstance(answer, str) or answer.failure:
            return {}
        return {(source, figure.destination): figure for figure in answer.figures}
