"""Four real daemons, killed in every way: the last complete snapshot comes back, bit by bit."""

import time

import pytest
from integration.four_nodes import SIZE, four_nodes, new_generation
from snapshot_nodes import Cluster, capture, cluster_root, content, edited, flip, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import SnapshotError, SnapshotIncomplete
from ftrain_snapshot.holdings import explain
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.words import SnapshotId

root = pytest.fixture(cluster_root)
nodes = pytest.fixture(four_nodes, scope="module")
cluster = pytest.fixture(new_generation)


def flip_data(cluster: Cluster, position: int, lane: int, snapshot: SnapshotId, offset: int) -> None:
    """One bit of the lane's unit, in the home where that chunk lies."""
    mapped = Lane(cluster.nodes[position].dir, lane)
    home = mapped.regions[snapshot.slot].home(offset // CHUNK_BYTES)
    mapped.close()
    flip(arena.home_path(cluster.nodes[position].dir, home, lane), offset)


def test_a_lost_node_is_rebuilt_on_a_spare_and_protected_again(cluster):
    for version in range(4):
        snapshot = cluster.snapshot(version, SIZE)
        cluster.wait_protected(version)
    for position in (0, 2):
        cluster.nodes[position].lose()
        assert cluster.newest() == snapshot
        cluster.replace(position)
        cluster.configure(snapshot)
        cluster.wait_restored()
        cluster.check(snapshot, SIZE)
        cluster.wait_protected(snapshot.version)  # the spare's parity is made anew in the background
    cluster.reserve(SIZE)
    snapshot = cluster.snapshot(4, SIZE)
    cluster.wait_protected(4)
    cluster.check(snapshot, SIZE)


def test_a_sealed_snapshot_survives_the_loss_of_all_workers_even_if_no_daemon_was_told(cluster):
    cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    snapshot = cluster.snapshot(1, SIZE, tell=False)
    torn = SnapshotId(2, cluster.generation, (snapshot.slot + 1) % 3)
    with capture(cluster.nodes[1].dir, 0, torn, content(2, 1, 0, SIZE), b"") as killed:
        killed.publish(2)
    assert cluster.newest() == snapshot
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)
    cluster.wait_protected(1)


def test_a_new_generation_drops_what_is_newer_than_its_start(cluster):
    first = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    cluster.snapshot(1, SIZE)
    cluster.wait_protected(1)
    cluster.configure(first)
    cluster.wait_restored()
    assert {h.snapshot for held in cluster.holdings().values() for h in held} == {first}
    cluster.configure(None)
    cluster.wait_restored()
    assert cluster.newest() is None


@pytest.mark.parametrize("moment", range(6))
def test_a_daemon_killed_while_protecting_loses_nothing_and_protects_the_next(cluster, moment):
    first = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    second = cluster.snapshot(1, SIZE)
    time.sleep(0.0015 * moment)
    victim = moment % 4
    cluster.nodes[victim].kill_daemon()
    assert cluster.newest() in (first, second)  # even if the whole node were gone
    cluster.nodes[victim].start()
    cluster.nodes[victim].ready()
    assert cluster.newest() == second
    cluster.configure(resumed=True)
    cluster.wait_restored()
    assert cluster.newest() == second
    cluster.check(second, SIZE)
    snapshot = cluster.snapshot(2, SIZE)
    cluster.wait_protected(2)
    cluster.check(snapshot, SIZE)
    cluster.nodes[3 - victim].lose()
    assert cluster.newest() == snapshot


@pytest.mark.parametrize("moment_seconds", [0.005, 0.02])
def test_a_spare_killed_while_rebuilding_takes_it_up_again(root, moment_seconds):
    size = 12_000_000
    cluster = Cluster(root, 4)
    try:
        cluster.configure()
        cluster.reserve(size)
        snapshot = cluster.snapshot(0, size)
        cluster.wait_protected(0)
        cluster.nodes[1].lose()
        cluster.replace(1)
        cluster.configure(snapshot)
        spare = cluster.nodes[1]
        wait_until(lambda: arena.home_path(spare.dir, snapshot.slot, 0).exists())
        time.sleep(moment_seconds)
        spare.kill_daemon()
        spare.start()
        spare.ready()
        assert cluster.newest() == snapshot
        cluster.configure(snapshot, resumed=True)
        cluster.wait_restored()
        cluster.check(snapshot, size)
    finally:
        cluster.stop()


def test_two_lost_nodes_of_four_come_back_with_two_parity_chunks(root):
    cluster = Cluster(root, 4, parity=2)
    states = {p: content(0, p, 0, SIZE + (p == 2) * 3_000_000) for p in range(4)}
    try:
        cluster.configure()
        cluster.wait_restored()
        cluster.reserve(SIZE)
        cluster.nodes[2].agent.reserve(0, SIZE + 3_000_000)
        for version in range(4):
            for position in (1, 2, 3):
                states[position] = edited(states[position], (version,), version)
            snapshot = cluster.snapshot(version, SIZE, data=lambda p, _: states[p])
            cluster.wait_protected(version)
        for lost in ((0, 1), (1, 3), (2, 3)):
            for position in lost:
                cluster.nodes[position].lose()
            assert cluster.newest() == snapshot
            for position in lost:
                cluster.replace(position)
            cluster.configure(snapshot)
            cluster.wait_restored()
            cluster.check(snapshot, SIZE, lambda p, _: states[p])
            cluster.wait_protected(snapshot.version)
            assert cluster.status().exposed_last_seconds > 0
    finally:
        cluster.stop()


def test_damaged_bytes_are_never_handed_out_but_rebuilt_from_parity(cluster):
    snapshot = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    flip(arena.table_path(cluster.nodes[0].dir, snapshot.slot, 0), 70)  # the header
    flip_data(cluster, 1, 1, snapshot, 50_000)  # its first chunk
    flip_data(cluster, 3, 1, snapshot, 2_250_000)  # its third one, in another rotation: both can be rebuilt
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)
    cluster.wait_protected(0)


def test_damaged_parity_is_made_again(cluster):
    snapshot = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    flip(arena.parity_path(cluster.nodes[2].dir, snapshot.slot, 0, 2), 1000)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.wait_protected(0)
    cluster.nodes[0].lose()
    cluster.replace(0)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)


def test_two_lost_nodes_are_an_honest_failure(cluster):
    snapshot = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    for position in (1, 2):
        cluster.nodes[position].lose()
    assert cluster.newest() is None
    assert "with position 1 or 2 back" in explain(cluster.holdings(), 4, 1)
    for position in (1, 2):
        cluster.replace(position)
    cluster.configure(snapshot)
    for position in (1, 2):
        with pytest.raises(SnapshotIncomplete, match="positions 1, 2 are missing"):
            cluster.nodes[position].agent.wait_restored(cluster.generation, 60)
        assert cluster.nodes[position].agent.status().failure
    assert cluster.nodes[0].agent.status().restored


def test_a_generation_is_waited_for_and_a_late_peer_does_not_fail_the_repair(cluster):
    snapshot = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    cluster.nodes[3].lose()
    cluster.replace(3)
    nodes = list(cluster.nodes)
    cluster.generation += 1
    peers = tuple(Peer(i, n.name, "127.0.0.1", n.port) for i, n in enumerate(nodes))
    for position in (3, 2, 1, 0):
        nodes[position].agent.configure(Membership(cluster.generation, position, 2, 1, peers, snapshot))
        time.sleep(0.05)
        assert nodes[3].agent.status().restored is False or position == 0
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)
    with pytest.raises(SnapshotError, match="is over"):
        nodes[0].agent.configure(Membership(cluster.generation - 1, 0, 2, 1, peers, None))
    with pytest.raises(TimeoutError):
        DaemonClient(nodes[0].dir, role="worker").wait_restored(cluster.generation + 1, 0.05)


def test_skipped_and_mismatched_snapshots_are_dropped_and_training_goes_on(cluster):
    first = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    skipped = cluster.take(1)
    cluster.write(1, 0, skipped, b"one lane only")
    cluster.nodes[1].agent.sealed(0, skipped)
    cluster.nodes[2].agent.skip(skipped)
    mismatched = cluster.take(2)
    for position in range(4):
        for lane in range(2):
            cluster.write(position, lane, mismatched, b"x", digest=position)
            cluster.nodes[position].agent.sealed(lane, mismatched)
    after = cluster.take(3)
    assert cluster.newest() == first
    assert after.slot != first.slot
    cluster.nodes[0].agent.skipped(4)
    wait_until(lambda: cluster.nodes[0].agent.status().skipped == 1)


@pytest.mark.parametrize(("nodes", "parity"), [(1, 0), (2, 0), (2, 1), (3, 1)])
def test_small_jobs(root, nodes, parity):
    cluster = Cluster(root, nodes, parity=parity)
    try:
        cluster.configure()
        cluster.reserve(SIZE)
        for version in range(5):
            snapshot = cluster.snapshot(version, SIZE)
            wait_until(lambda v=version: cluster.nodes[0].agent.status().levels.sealed == v)
        if parity:
            cluster.wait_protected(4)
            cluster.nodes[nodes - 1].lose()
            cluster.replace(nodes - 1)
        assert cluster.newest() == snapshot
        cluster.configure(snapshot)
        cluster.wait_restored()
        cluster.check(snapshot, SIZE)
    finally:
        cluster.stop()
