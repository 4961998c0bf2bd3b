"""Pure: how many nodes a job has for a while, and what its nodes hold of the snapshots of each such *world*.

All generations of one world share positions, groups and parity: a spare takes over the position of a lost node. Where
the number of nodes changes, a new world begins: members get new positions, and are coded anew. A snapshot belongs to
the world of the generation that captured it, and is read by the positions of that world, whoever holds them now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ftrain_launcher.job.membership import Node
from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.placement import Groups, groups
from ftrain_snapshot.words import SnapshotId

WORLDS_KEPT = 16
"""A node has room for three snapshots, and one that was away or idle for long may come back with older ones."""

Holdings = Mapping[int, Sequence[Holding]]
"""What the node at each position says that it holds; positions without a node are left out."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """So many nodes, and how they are coded."""

    first: int
    """Its first generation."""
    nodes: int
    parity: int
    groups: Groups


NOTHING = World(first=0, nodes=0, parity=0, groups=())
"""Before the first one."""


class Held(NamedTuple):
    """What is there of the snapshots of one world."""

    world: World
    holdings: Holdings


def place(domains: Sequence[str], parity: int, *, first: int, elastic: bool) -> World:
    """A new world of nodes with these failure domains; with the most parity that so few can carry, if it is elastic.

    Raises PlacementImpossible.
    """
    most = min(parity, len(domains) - 1) if elastic else parity
    for possible in range(most, -1, -1) if elastic else (most,):
        try:
            return World(first=first, nodes=len(domains), parity=possible, groups=groups(domains, possible))
        except PlacementImpossible:
            if possible == 0 or not elastic:
                raise
    raise AssertionError("parity 0 is always possible")


def is_same(before: Sequence[str], now: Sequence[str | None]) -> bool:
    """Whether these nodes, by position, are of the same world as those: nobody who is still there has moved."""
    there = set(before)
    pairs = zip(before, now, strict=False)
    return len(before) == len(now) and all(new == old or new not in there for old, new in pairs)


class Worlds:
    """Those whose snapshots may still be somewhere."""

    def __init__(self) -> None:
        self._known: list[World] = []

    @property
    def newest(self) -> World | None:
        """That of the newest generation that was formed."""
        return self._known[-1] if self._known else None

    def begin(self, world: World) -> None:
        """A generation was formed in it; it may be the same as before."""
        if world != self.newest:
            self._known.append(world)
            del self._known[:-WORLDS_KEPT]

    def of(self, snapshot: SnapshotId) -> World | None:
        """The world that captured a snapshot; None: nobody knows any more."""
        return next((world for world in reversed(self._known) if world.first <= snapshot.generation), None)

    def held(self, nodes: Sequence[Node], survivors: Iterable[int], *, stays: bool) -> list[Held]:
        """What these nodes hold, world by world, that of the newest generation last.

        ``survivors``: its positions whose node is here, even if it holds nothing. ``stays``: the next generation is of
        the same world, where only a position's own node is asked for its share.
        """
        shares = self._shares(nodes, stays=stays)
        found = []
        for world in self._known:
            is_newest = world == self.newest
            holdings: dict[int, list[Holding]] = {p: [] for p in survivors} if is_newest else {}
            if is_newest and stays:
                holdings |= {n.position: [] for n in nodes if n.position is not None}
            for (snapshot, position), (_, holding) in shares.items():
                if self.of(snapshot) == world:
                    holdings.setdefault(position, []).append(holding)
            found.append(Held(world, holdings))
        return found

    def origin(self, nodes: Sequence[Node], snapshot: SnapshotId, codec: str) -> Origin:
        """How the nodes of another world find a snapshot. ``position`` is left open: it is another for each."""
        world = self.of(snapshot)
        assert world is not None
        holders = {p: node for (of, p), (node, _) in self._shares(nodes, stays=False).items() if of == snapshot}
        return Origin(
            snapshot=snapshot,
            nodes=world.nodes,
            parity=world.parity,
            groups=world.groups,
            codec=codec,
            holders=tuple(Peer(p, n.name, n.host, n.daemon_port) for p, n in sorted(holders.items())),
        )

    def _shares(self, nodes: Sequence[Node], *, stays: bool) -> dict[tuple[SnapshotId, int], tuple[Node, Holding]]:
        """One node for each share: a position that was given away may have left its bytes on two."""
        best: dict[tuple[SnapshotId, int], tuple[Node, Holding]] = {}
        for node in nodes:
            for held in node.inventory.holdings if node.inventory is not None else ():
                world = self.of(held.snapshot)
                if world is None or (stays and world == self.newest and held.position != node.position):
                    continue
                key = held.snapshot, held.position
                if key not in best or _worth(held) > _worth(best[key][1]):
                    best[key] = node, held
        return best


def _worth(holding: Holding) -> tuple[int, int]:
    return holding.data + holding.parity, -len(holding.damage)
