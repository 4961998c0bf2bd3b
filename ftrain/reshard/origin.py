"""The world that a snapshot was captured in: what its ranks said, and verified bytes of any of them.

Rank r of that world was lane r mod lanes of the node at position r div lanes.
"""

from __future__ import annotations

from typing import Any

from ftrain.durable.contents import RankContents, RegionReader
from ftrain.logical.coverage import check
from ftrain.logical.reads import Planner, World
from ftrain.reshard.filling import Reading
from ftrain.reshard.said import Said
from ftrain_snapshot.membership import Origin


class OldWorld:
    """All that the ranks of an origin said of themselves.

    Raises StateMismatch if any of it cannot be read, or its state could not be described; StateUncovered if the ranks
    do not hold all of it; and what ``source`` raises.
    """

    def __init__(self, origin: Origin, lanes: int, source: Reading) -> None:
        self.origin, self.lanes, self.source = origin, lanes, source
        self.size = origin.nodes * lanes
        """How many ranks it had."""
        manifests = (source.manifest(*divmod(rank, lanes)) for rank in range(self.size))
        self.ranks = [Said(rank, self.size, manifest) for rank, manifest in enumerate(manifests)]
        """What each of them said, in order."""
        self._reader = _TensorReader(source, lanes, self.ranks)
        states = tuple(said.state for said in self.ranks)
        check(states, are_kept=True)
        held = {peer.position for peer in origin.holders} | {origin.position}
        lost = frozenset(range(origin.nodes)) - held
        self.world = World(states, {rank: rank // lanes for rank in range(self.size)}, lost)
        self.planner = Planner(self.world)

    def with_tensors(self, rank: int, value: Any) -> Any:
        """A value of that rank's tree with tensors in the place of stand-ins."""
        return self.ranks[rank].contents.with_tensors(value, self._reader)


class _TensorReader(RegionReader):
    """With the manifests that are here already."""

    def __init__(self, source: Reading, lanes: int, ranks: list[Said]) -> None:
        super().__init__(source, lanes, len(ranks))
        self._ranks = ranks

    def contents(self, rank: int) -> RankContents:
        return self._ranks[rank].contents
