"""Bits flipped in memory, in records and on the wire are found, and repaired or said."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest
from flipping_proxy import flipping
from integration.protected_nodes import Nodes, data_of, flip_chunk, flip_parity, protected_nodes
from snapshot_nodes import Cluster, cluster_root, flip, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.errors import SnapshotIncomplete
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.store import Store
from ftrain_snapshot.words import SnapshotId

root = pytest.fixture(cluster_root)
cluster = pytest.fixture(protected_nodes)


@pytest.mark.parametrize("cluster", [(5, 2)], indirect=True, ids=str)
def test_a_sum_that_holds_damaged_bytes_is_found_out_and_made_without_them(cluster):
    flip_chunk(cluster, 2, cluster.first, 1)
    cluster.swap(0)
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))
    cluster.wait_protected(0)
    assert "event=chunk_repaired" in cluster.log(2)


@pytest.mark.parametrize("cluster", [(4, 1), (5, 2)], indirect=True, ids=str)
def test_bits_flipped_in_data_and_parity_are_found_at_a_restore_and_repaired(cluster):
    flip_chunk(cluster, 0, cluster.first, 0)
    flip_chunk(cluster, 2, cluster.first, 2)
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))
    cluster.wait_protected(0)
    assert "event=chunk_repaired" in cluster.log(0)
    assert "event=chunk_repaired" in cluster.log(2)
    assert "event=chunk_repaired" not in cluster.log(3)
    flip_parity(cluster, 3, 0)
    cluster.restore(cluster.first)
    cluster.wait_protected(0)
    cluster.lose_and_replace(1)
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))


@pytest.mark.parametrize("cluster", [(4, 1)], indirect=True, ids=str)
def test_bits_flipped_while_the_daemon_was_away_are_found_when_it_is_back(cluster):
    victim = cluster.nodes[2]
    victim.kill_daemon()
    flip_chunk(cluster, 2, cluster.first, 1)
    table = arena.table_path(victim.dir, cluster.first.slot, 0)
    flip(table, 70)  # its header is none any more
    victim.start()
    victim.ready()
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))
    cluster.wait_protected(0)


def make_parity_wrong(cluster: Nodes, position: int, snapshot: SnapshotId) -> None:
    """The first chunk of all parity there is not that of the data, and its checksum says that it is right."""
    node = cluster.nodes[position]
    node.kill_daemon()
    store = Store(node.dir)
    for _ in store.attach():
        pass
    catalog = store.catalog(snapshot)
    for lane, rotation, length in [(p.lane, p.rotation, p.parity_bytes) for p in catalog.parity]:
        view = store.parity(snapshot, lane, rotation, 0)
        view[50] ^= 1
        store.record_parity(snapshot, lane, rotation, 0, checksum(view))
        catalog.put_parity(store.describe_parity(snapshot, lane, rotation, catalog.parity[0].generator, length))
    store.save(catalog)
    node.start()
    node.ready()
    cluster.configure(resumed=True)


@pytest.mark.parametrize("cluster", [(4, 1)], indirect=True, ids=str)
def test_parity_that_is_not_that_of_the_data_costs_its_snapshot(cluster):
    """Given wrong parity that looks sound, when it is needed, then that snapshot is not chosen a second time."""
    second = cluster.snapshot(1, 0, data=data_of(1))
    cluster.wait_protected(1)
    make_parity_wrong(cluster, 3, second)
    cluster.lose_and_replace(0)
    assert cluster.newest() == second
    cluster.configure(second)
    with pytest.raises(SnapshotIncomplete, match="do not have the checksum of the lost ones"):
        cluster.nodes[0].agent.wait_restored(cluster.generation, 60)
    wait_until(lambda: cluster.newest() == cluster.first, what="the older one")
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))


@pytest.mark.parametrize("cluster", [(4, 1)], indirect=True, ids=str)
def test_damaged_records_are_found_out_anew_when_the_daemon_is_back(cluster):
    for position, resumed in ((1, True), (2, False)):  # under a generation that runs, and before a new one
        cluster.nodes[position].kill_daemon()
        flip(cluster.nodes[position].dir / f"slot{cluster.first.slot}.catalog", 100)
        cluster.nodes[position].start()
        cluster.nodes[position].ready()
        cluster.configure(None if resumed else cluster.first, resumed=resumed)
        cluster.wait_restored()
        cluster.wait_protected(0)
        assert "event=record_damaged" in cluster.log(position)
    cluster.lose_and_replace(0)
    cluster.restore(cluster.first)
    cluster.check(cluster.first, 0, data_of(0))


@pytest.mark.parametrize("cluster", [(4, 2)], indirect=True, ids=str)
def test_a_chunk_damaged_before_it_was_protected_gives_its_snapshot_up(cluster):
    second = cluster.take(1)
    for position in range(4):
        cluster.write(position, 0, second, data_of(1)(position, 0))
    flip_chunk(cluster, 2, second, 1)
    for node in cluster.nodes:
        node.agent.sealed(0, second)
    wait_until(lambda: "event=snapshot_dropped version=1" in cluster.log(0))
    assert "event=chunk_lost" in cluster.log(2)
    assert cluster.newest() == cluster.first
    third = cluster.take(2)
    for position, node in enumerate(cluster.nodes):
        cluster.write(position, 0, third, data_of(2)(position, 0))
        node.agent.sealed(0, third)
    cluster.wait_protected(2)


@pytest.mark.parametrize("cluster", [(4, 1), (4, 2)], indirect=True, ids=str)
def test_bits_flipped_on_the_wire_never_get_in(cluster):
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(flipping(("127.0.0.1", node.port), interval_bytes=4 * CHUNK_BYTES, seed=i))
            for i, node in enumerate(cluster.nodes)
        ]
        cluster.swap(0)
        proxies[0] = stack.enter_context(flipping(("127.0.0.1", cluster.nodes[0].port), interval_bytes=4 * CHUNK_BYTES))
        ports = [proxy.port for proxy in proxies]
        cluster.configure_over(ports, cluster.first)
        cluster.wait_restored()
        cluster.check(cluster.first, 0, data_of(0))
        cluster.wait_protected(0)
        second = cluster.snapshot(1, 0, data=data_of(1))
        wait_until(lambda: cluster.status().levels.sealed == 1)
        assert sum(proxy.flipped for proxy in proxies) > 0
        for proxy in proxies:
            proxy.flips = False
        cluster.take(2)  # the gate is open again: protected, or given up
        if cluster.protected() == 1:
            cluster.swap(2)
            cluster.restore(second)
            cluster.wait_protected(1)
        cluster.check(second, 0, data_of(1))
        for node in cluster.nodes:
            assert [lane for lane in node.agent.verify().lanes if lane.damaged] == []


@pytest.mark.parametrize("cluster", [(4, 1), (5, 2)], indirect=True, ids=str)
def test_a_check_on_request_finds_and_repairs_what_is_wrong(cluster):
    data = {(p, lane): data_of(0)(p, lane) for p in range(len(cluster.nodes)) for lane in range(cluster.lanes)}
    for version in (1, 2):  # all three slots hold the same bytes, most of them in the same homes
        second = cluster.snapshot(version, 0, data=lambda p, lane: data[p, lane])
        cluster.wait_protected(version)
    report = cluster.nodes[0].agent.verify()
    assert {lane.snapshot for lane in report.lanes} == {
        cluster.first,
        second,
        SnapshotId(1, 1, report.lanes[1].snapshot.slot),
    }
    assert all(lane.checked > 3 and lane.damaged == lane.repaired == 0 for lane in report.lanes)
    flip_chunk(cluster, 0, second, 0)
    flip_chunk(cluster, 0, second, 2)
    flip_parity(cluster, 0, 0)
    report = cluster.nodes[0].agent.verify()
    assert sum(lane.damaged for lane in report.lanes) >= 3
    assert all(lane.damaged == lane.repaired for lane in report.lanes)
    assert all(lane.damaged == 0 for lane in cluster.nodes[0].agent.verify().lanes)
    cluster.check(second, 0, data_of(0))
    cluster.check(cluster.first, 0, data_of(0))
    assert cluster.log(0).count("event=chunk_repaired") == sum(lane.repaired for lane in report.lanes)
    cluster.swap(1)
    cluster.restore(second)  # from parity that was repaired
    cluster.check(second, 0, data_of(0))


def test_a_check_does_not_wait_for_what_was_given_up(root):
    cluster = Cluster(root, 3)
    cluster.configure()
    cluster.reserve(4 * CHUNK_BYTES)
    group = group_of(0, 3, 1)
    for version in range(8):
        snapshot = cluster.snapshot(version, 3 * CHUNK_BYTES + version)
        cluster.wait_protected(version)
        for position in group.data_members(0):  # one stripe, one chunk more than parity makes up for
            flip_chunk(cluster, position, snapshot, group.data_rotations(position).index(0))
        with ThreadPoolExecutor() as pool:  # all at the same time, as the command line has them look
            reports = list(pool.map(lambda node: node.agent.verify(), cluster.nodes))
        assert any(lane.damaged for report in reports for lane in report.lanes)
        wait_until(partial(has_dropped, cluster, version), 60, f"version {version} given up")
        start = time.monotonic()
        for node in cluster.nodes:
            assert not any(lane.damaged for lane in node.agent.verify().lanes)
        assert time.monotonic() - start < 10.0
    cluster.stop()


def has_dropped(cluster: Cluster, version: int) -> bool:
    """Every daemon has heard that the job gave the snapshot up."""
    logs = [(cluster.root / f"{node.name}.log").read_text() for node in cluster.nodes]
    return all(f"event=snapshot_dropped version={version} " in log for log in logs)
