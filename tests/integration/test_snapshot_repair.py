"""Nodes come back: lost in every pattern up to m, and daemons killed while they rebuild."""

from __future__ import annotations

import re
from itertools import combinations
from random import Random

import pytest
from integration.protected_nodes import SIZE, Nodes, data_of, protected_nodes
from snapshot_nodes import Cluster, cluster_root, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.manifest import CHUNK_BYTES

root = pytest.fixture(cluster_root)
cluster = pytest.fixture(protected_nodes)


@pytest.mark.parametrize("cluster", [(3, 1), (4, 2), (5, 2), (6, 2)], indirect=True, ids=str)
def test_every_pattern_of_lost_nodes_is_rebuilt_and_protected_again(cluster):
    nodes, parity = len(cluster.nodes), cluster.parity
    patterns = [lost for count in range(1, parity + 1) for lost in combinations(range(nodes), count)]
    for lost in patterns:
        cluster.swap(*lost)
        cluster.restore(cluster.first)
        cluster.check(cluster.first, 0, data_of(0))
        cluster.wait_protected(0)


def received_bytes(cluster: Nodes, position: int) -> int:
    """What the node had received of what it had lost when it was restored."""
    found = re.findall(r"event=restored .*received_bytes=(\d+)", cluster.log(position))
    return int(found[-1])


@pytest.mark.parametrize("cluster", [(4, 1), (5, 2), (6, 2)], indirect=True, ids=str)
def test_a_lost_node_receives_its_bytes_once_however_many_others_they_are_made_of(cluster):
    data = {position: Random(position).randbytes(SIZE) for position in range(len(cluster.nodes))}
    second = cluster.snapshot(1, 0, data=lambda position, _: data[position])
    cluster.wait_protected(1)
    for position in (1, 3):
        cluster.swap(position)
        cluster.restore(second)
        assert 3 * CHUNK_BYTES < received_bytes(cluster, position) < 1.5 * SIZE  # its end comes in parts
        cluster.check(second, 0, lambda position, _: data[position])
        cluster.wait_protected(1)


@pytest.mark.parametrize("cluster", [(3, 1), (5, 2)], indirect=True, ids=str)
def test_one_more_loss_than_there_is_parity_is_an_honest_failure(cluster):
    lost = tuple(range(cluster.parity + 1))
    cluster.lose_and_replace(*lost)
    cluster.configure(cluster.first)
    for position in lost:
        with pytest.raises(SnapshotIncomplete, match="cannot be restored on position"):
            cluster.nodes[position].agent.wait_restored(cluster.generation, 60)
    cluster.nodes[-1].agent.wait_restored(cluster.generation, 60)


@pytest.mark.parametrize("cluster", [(4, 2)], indirect=True, ids=str)
def test_a_daemon_killed_while_it_rebuilds_takes_it_up_again(cluster):
    for moment in range(4):
        cluster.lose_and_replace(0, 2)
        cluster.configure(cluster.first)
        spare = cluster.nodes[(0, 2)[moment % 2]]
        files = [arena.table_path(spare.dir, 2, 0), arena.home_path(spare.dir, 0, 0)]
        wait_until(lambda files=files, moment=moment: files[moment // 2].exists())
        spare.kill_daemon()
        spare.start()
        spare.ready()
        cluster.configure(cluster.first, resumed=True)
        cluster.wait_restored()
        cluster.check(cluster.first, 0, data_of(0))
        cluster.configure(cluster.first)
        cluster.wait_protected(0)


def test_a_lost_node_of_several_small_lanes_is_restored_at_the_first_try(root):
    cluster = Cluster(root, 2, lanes=3)
    cluster.configure()
    cluster.reserve(CHUNK_BYTES)
    first = cluster.snapshot(0, 700)
    cluster.wait_protected(0)
    for _ in range(8):
        cluster.nodes[0].lose()
        cluster.replace(0)
        cluster.configure(first)
        cluster.wait_restored()
        cluster.check(first, 700)
        cluster.wait_protected(0)
        assert "repair_failed" not in (root / f"{cluster.nodes[0].name}.log").read_text()
    cluster.stop()
