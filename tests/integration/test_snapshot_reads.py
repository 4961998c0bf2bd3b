"""Any range of any position can be read, also of lost ones, and of other groups."""

from __future__ import annotations

from random import Random

import pytest
from integration.protected_nodes import SIZE, data_of, flip_chunk, protected_nodes
from snapshot_nodes import Cluster, cluster_root, wait_until

from ftrain_snapshot.errors import SnapshotError, SnapshotIncomplete
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.words import SnapshotId

root = pytest.fixture(cluster_root)
cluster = pytest.fixture(protected_nodes)


@pytest.mark.parametrize("cluster", [(4, 1), (6, 2)], indirect=True, ids=str)
def test_any_range_of_any_position_can_be_read_also_of_lost_ones(cluster):
    random = Random(3)
    nodes = len(cluster.nodes)
    for lost in ((), (1,), (2,), (0, 3))[: 2 + cluster.parity]:
        for position in lost:
            if cluster.nodes[position].process.poll() is None:
                cluster.nodes[position].kill_daemon()
        reader = cluster.nodes[nodes - 1].agent
        units = {unit.position: unit for unit in reader.units(cluster.first)}
        assert set(units) == set(range(nodes))
        for _ in range(12):
            position = random.randrange(nodes)
            data = data_of(0)(position, 0)
            assert units[position].data_bytes == len(data)
            start, stop = sorted(random.randrange(len(data) + 1) for _ in range(2))
            assert reader.read(cluster.first, position, 0, start, stop) == data[start:stop]
        unit = reader.descriptor(cluster.first, 0, 0)
        end = unit.manifest_offset + unit.manifest_bytes
        assert reader.read(cluster.first, 0, 0, unit.manifest_offset, end) == b"manifest 0"
        for position in lost:
            cluster.nodes[position].start()
            cluster.nodes[position].ready()
        cluster.restore(cluster.first)


@pytest.mark.parametrize("cluster", [(4, 1)], indirect=True, ids=str)
def test_a_read_never_hands_out_damaged_bytes_and_says_honestly_what_is_gone(cluster):
    flip_chunk(cluster, 2, cluster.first, 1)
    data = data_of(0)(2, 0)
    for reader in (2, 0):  # the owner itself, and another node
        assert cluster.nodes[reader].agent.read(cluster.first, 2, 0, 0, len(data)) == data
    wait_until(lambda: "event=chunk_repaired" in cluster.log(2))
    reader = cluster.nodes[0].agent
    with pytest.raises(SnapshotIncomplete, match="is not kept"):
        reader.read(SnapshotId(7, 1, 1), 2, 0, 0, 10)
    with pytest.raises(SnapshotIncomplete, match="position 9"):
        reader.read(cluster.first, 9, 0, 0, 10)
    with pytest.raises(SnapshotError, match="cannot be read"):
        reader.read(cluster.first, 2, 0, 0, 1 << 40)
    cluster.nodes[2].kill_daemon()
    cluster.nodes[3].kill_daemon()
    wait_until(lambda: cluster.log(0).count("event=peer_lost") >= 2)
    with pytest.raises(SnapshotIncomplete, match=r"positions \[2, 3.*cannot be had"):
        reader.read(cluster.first, 2, 0, 0, len(data))
    for position in (2, 3):
        cluster.nodes[position].start()
        cluster.nodes[position].ready()


def test_other_groups_are_read_by_way_of_the_gate(root):
    groups = ((0, 3), (1, 4), (2, 5))
    cluster = Cluster(root, 6)
    try:
        cluster.generation = 1
        peers = tuple(Peer(i, n.name, "127.0.0.1", n.port) for i, n in enumerate(cluster.nodes))
        for position, node in enumerate(cluster.nodes):
            node.agent.configure(Membership(1, position, 1, 1, peers, groups=groups))
        cluster.reserve(SIZE + 2_000_000)
        snapshot = cluster.snapshot(0, 0, data=data_of(0))
        cluster.wait_protected(0)
        reader = cluster.nodes[4].agent
        assert [unit.position for unit in reader.units(snapshot)] == list(range(6))
        for position in (2, 0, 4, 1):
            data = data_of(0)(position, 0)
            assert reader.read(snapshot, position, 0, 100, len(data) - 3) == data[100 : len(data) - 3]
        with pytest.raises(SnapshotIncomplete, match="is not kept"):
            reader.read(SnapshotId(9, 1, 2), 2, 0, 0, 10)
        cluster.nodes[2].kill_daemon()
        gate_log = cluster.root / f"{cluster.nodes[0].name}.log"
        wait_until(lambda: "event=peer_lost position=2" in gate_log.read_text())
        data = data_of(0)(2, 0)
        assert reader.read(snapshot, 2, 0, 0, len(data)) == data
        cluster.nodes[5].kill_daemon()
        wait_until(lambda: "event=peer_lost position=5" in gate_log.read_text())
        with pytest.raises(SnapshotIncomplete, match="nobody of the group of position 2"):
            reader.read(snapshot, 2, 0, 0, 10)
    finally:
        cluster.stop()
