"""The world that a snapshot was captured in: what its ranks said, and verified bytes of any of them.

Rank r of that world was lane r mod lanes of the node at position r div lanes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from ftrain.durable.contents import RegionReader
from ftrain.logical.coverage import check
from ftrain.logical.reads import Planner, World
from ftrain.logical.state import RankState
from ftrain.reading import part_of, read_logical, read_tree
from ftrain.reshard.filling import Reading
from ftrain_snapshot.messages import Origin


class OldWorld:
    """All that the ranks of an origin said of themselves.

    Raises StateMismatch if any of it cannot be read, or its state could not be described; StateUncovered if the ranks
    do not hold all of it; and what ``source`` raises.
    """

    def __init__(self, origin: Origin, lanes: int, source: Reading) -> None:
        self.origin, self.lanes, self.source = origin, lanes, source
        self.size = origin.nodes * lanes
        """How many ranks it had."""
        self._reader = RegionReader(source, lanes, self.size)
        self.ranks = [self._reader.contents(rank) for rank in range(self.size)]
        """Their manifests, in order."""
        states = tuple(read_logical(contents.content) for contents in self.ranks)
        check(states, are_kept=True)
        held = {peer.position for peer in origin.holders} | {origin.position}
        lost = frozenset(range(origin.nodes)) - held
        self.world = World(states, {rank: rank // lanes for rank in range(self.size)}, lost)
        self.planner = Planner(self.world)

    @cached_property
    def trees(self) -> list[dict[str, Any]]:
        """Each rank's values; for a tensor there is one of the rank's stand-ins."""
        return [read_tree(contents.content.tree, contents.stand_ins) for contents in self.ranks]

    def objects(self, rank: int) -> dict[str, Any]:
        """A rank's tracked objects, by name."""
        return part_of(self.trees[rank], "objects")

    def state(self, rank: int) -> RankState:
        """What a rank held."""
        return self.world.states[rank]

    def with_tensors(self, rank: int, value: Any) -> Any:
        """A value of that rank's tree with tensors in the place of stand-ins."""
        return self.ranks[rank].with_tensors(value, self._reader)
