"""Bytes come back: nodes lost in every pattern up to m, bits flipped in memory and on the wire, daemons killed."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from flipping_proxy import flipping
from snapshot_nodes import Cluster, Node, cluster_root, flip, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.errors import SnapshotError, SnapshotIncomplete
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.messages import Membership, Peer, SnapshotId
from ftrain_snapshot.placement import group_of
from ftrain_snapshot.store import Store

root = pytest.fixture(cluster_root)
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


@pytest.fixture
def cluster(root, request):
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


@pytest.mark.parametrize("cluster", [(3, 1), (5, 2)], indirect=True, ids=str)
def test_one_more_loss_than_there_is_parity_is_an_honest_failure(cluster):
    lost = tuple(range(cluster.parity + 1))
    cluster.lose_and_replace(*lost)
    cluster.configure(cluster.first)
    for position in lost:
        with pytest.raises(SnapshotIncomplete, match="cannot be restored on position"):
            cluster.nodes[position].agent.wait_restored(cluster.generation, 60)
    cluster.nodes[-1].agent.wait_restored(cluster.generation, 60)


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
