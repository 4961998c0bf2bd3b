"""Real daemons that keep a protected snapshot, and bits flipped in what they keep."""

from __future__ import annotations

from pathlib import Path
from random import Random

from snapshot_nodes import Cluster, Node, flip

from ftrain_snapshot import arena
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.words import SnapshotId

SIZE = 3 * CHUNK_BYTES + 5000


def data_of(version: int):
    """Units of several chunks, and not equally long: one is much shorter than the others."""

    def data(position: int, lane: int) -> bytes:
        size = 700 if position == 1 else SIZE + 300_000 * position - 64 * lane
        return Random(f"{version} {position} {lane}").randbytes(size)

    return data


class Nodes(Cluster):
    """A cluster with a protected snapshot."""

    def __init__(self, root: Path, nodes: int, parity: int, *, lanes: int = 1) -> None:
        super().__init__(root, nodes, lanes=lanes, parity=parity)
        self.idle: list[tuple[Node, int]] = []
        self.configure()
        self.reserve(SIZE + 300_000 * nodes)
        self.first = self.snapshot(0, 0, data=data_of(0))
        self.wait_protected(0)

    def lose_and_replace(self, *positions: int) -> None:
        for position in positions:
            self.nodes[position].lose()
        for position in positions:
            self.replace(position)

    def configure_over(self, ports: list[int], restore: SnapshotId) -> None:
        """A new generation whose daemons reach each other by these ports."""
        self.generation, self.ticket = self.generation + 1, 0
        peers = tuple(Peer(i, n.name, "127.0.0.1", ports[i]) for i, n in enumerate(self.nodes))
        for position, node in enumerate(self.nodes):
            node.agent.configure(Membership(self.generation, position, self.lanes, self.parity, peers, restore))

    def swap(self, *positions: int) -> None:
        """Idle daemons take these positions; what they hold is of another position, and so of no use to them."""
        spares = []
        for position in positions:
            spare = next((each for each in self.idle if each[1] != position), None)
            if spare is None:
                spare = self._node().ready(), -1
            else:
                self.idle.remove(spare)
            spares.append(spare[0])
        for position, spare in zip(positions, spares, strict=True):
            self.idle.append((self.nodes[position], position))
            self.nodes[position] = spare

    def stop(self) -> None:
        super().stop()
        for node, _ in self.idle:
            node.stop()

    def restore(self, snapshot: SnapshotId) -> None:
        self.configure(snapshot)
        self.wait_restored()

    def log(self, position: int) -> str:
        return (self.root / f"{self.nodes[position].name}.log").read_text()


def protected_nodes(root, request):
    """As many as the test is parametrized with."""
    nodes = Nodes(root, *request.param)
    yield nodes
    nodes.stop()


def home_of(cluster: Cluster, position: int, snapshot: SnapshotId, chunk: int, lane: int = 0) -> Path:
    """The file in which the chunk lies."""
    mapped = Lane(cluster.nodes[position].dir, lane)
    home = mapped.regions[snapshot.slot].home(chunk)
    mapped.close()
    return arena.home_path(cluster.nodes[position].dir, home, lane)


def flip_chunk(cluster: Cluster, position: int, snapshot: SnapshotId, chunk: int) -> None:
    flip(home_of(cluster, position, snapshot, chunk), chunk * CHUNK_BYTES + 123)


def flip_parity(cluster: Cluster, position: int, stripe: int) -> None:
    """In whichever homes of the rotations that it keeps."""
    paths = sorted(cluster.nodes[position].dir.glob("slot*.parity0.*"))
    assert paths
    for path in paths:
        if path.stat().st_size > stripe * CHUNK_BYTES + 9:
            flip(path, stripe * CHUNK_BYTES + 9)
