"""Clusters whose number of nodes changes: what the snapshot tests of origins have in common."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import msgspec
from snapshot_nodes import Cluster, Node, content, wait_until

from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.membership import Membership, Origin, Peer
from ftrain_snapshot.placement import Groups, groups
from ftrain_snapshot.read_plan import Wanted
from ftrain_snapshot.words import SnapshotId


def seen_by(origin: Origin, node: str) -> Origin:
    """The same as a node is told of it."""
    position = next((peer.position for peer in origin.holders if peer.node == node), -1)
    return msgspec.structs.replace(origin, position=position)


class World:
    """What a controller remembers of one world: who was where, and how that was coded."""

    def __init__(self, nodes: Sequence[Node], parity: int, groups_: Groups = ()) -> None:
        self.nodes, self.parity = list(nodes), parity
        self.groups = groups_ or groups(len(nodes), parity)


class Elastic(Cluster):
    """A cluster that goes from world to world."""

    world: World
    origin: Origin | None = None
    older: Origin | None = None
    guests: Sequence[Node] = ()
    """They have no position, and others read what they hold of the origin."""

    def begin(self, groups_: Groups = ()) -> None:
        """The first world, from nothing."""
        self.world = World(self.nodes, self.parity, groups_)
        self._tell(None)

    def reform(
        self,
        nodes: Sequence[Node],
        snapshot: SnapshotId,
        of: World,
        *,
        parity: int | None = None,
        groups_: Groups = (),
        older: SnapshotId | None = None,
        guests: Sequence[Node] = (),
    ) -> None:
        """Another world, of these nodes, starts from a snapshot of ``of``; an ``older`` one of it is kept, too."""
        self.guests = guests
        self.nodes, self.parity = list(nodes), self.parity if parity is None else parity
        self.world = World(nodes, self.parity, groups_)
        self.older = None if older is None else self._origin(older, of)
        self._tell(self._origin(snapshot, of))

    def _origin(self, snapshot: SnapshotId, of: World) -> Origin:
        holders = tuple(
            Peer(held.position, node.name, "127.0.0.1", node.port) for node, held in self.held(snapshot).items()
        )
        return Origin(snapshot, len(of.nodes), of.parity, of.groups, self.codec, holders)

    def again(self, restore: SnapshotId) -> None:
        """The next generation of the same world."""
        self._tell(None, restore)

    def resume(self, node: Node) -> None:
        """A node's daemon was killed: another one comes in its place, where the others reach it."""
        node.start(node.port)
        node.ready()
        node.agent.configure(self._membership(self.nodes.index(node), resumed=True))

    def held(self, snapshot: SnapshotId) -> dict[Node, Holding]:
        """Who of the nodes that are there now holds what of it."""
        found = {node: node.agent.inventory().holdings for node in (*self.nodes, *self.guests)}
        return {node: held for node, all_ in found.items() for held in all_ if held.snapshot == snapshot}

    def _tell(self, origin: Origin | None, restore: SnapshotId | None = None) -> None:
        self.generation, self.ticket = self.generation + 1, 0
        self.origin, self.start = origin, restore
        for position, node in enumerate(self.nodes):
            node.agent.configure(self._membership(position))
        for guest in self.guests if origin is not None else ():
            told = self._membership(0)
            guest.agent.configure(msgspec.structs.replace(told, position=-1, origin=seen_by(origin, guest.name)))

    def _membership(self, position: int, *, resumed: bool = False) -> Membership:
        peers = tuple(Peer(i, n.name, "127.0.0.1", n.port) for i, n in enumerate(self.nodes))
        node = self.nodes[position].name
        origin, older = (None if each is None else seen_by(each, node) for each in (self.origin, self.older))
        return Membership(
            self.generation, position, self.lanes, self.parity, peers, self.start, resumed, self.world.groups,
            codec=self.codec, origin=origin, older=older if origin is not None else None,
        )  # fmt: skip

    def check_origin(self, node: Node, size: int, *, seed: int = 0, patience_seconds: float = 0.0) -> int:
        """Every byte of every unit of the old world, read on this node; how many bytes that was."""
        assert self.origin is not None
        snapshot = self.origin.snapshot
        with DaemonClient(node.dir, role="worker") as client:
            units = client.units(snapshot)
            assert [(u.position, u.lane) for u in units] == [
                (p, lane) for p in range(self.origin.nodes) for lane in range(self.lanes)
            ]
            whole = {(u.position, u.lane): bytearray(u.unit_bytes) for u in units}
            wanted = [Wanted(*key, 0, memoryview(into)) for key, into in whole.items()]
            Random(seed).shuffle(wanted)
            client.read_many(snapshot, wanted, patience_seconds=patience_seconds)
            for unit in units:
                got = whole[unit.position, unit.lane]
                assert got[: unit.data_bytes] == content(snapshot.version, unit.position, unit.lane, size)
                manifest = got[unit.manifest_offset : unit.manifest_offset + unit.manifest_bytes]
                assert manifest == b"manifest %d" % unit.lane
            return sum(map(len, whole.values()))

    def wait_let_go(self, snapshot: SnapshotId) -> None:
        """Nobody tells of it any more."""
        wait_until(lambda: not self.held(snapshot), what=f"{snapshot} let go")
