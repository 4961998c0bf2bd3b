"""Four real daemons, killed in every way: the last complete snapshot comes back, bit by bit."""

import os
import signal
import socket
import struct
import time
from pathlib import Path
from random import Random

import pytest
from snapshot_nodes import Cluster, Node, capture, cluster_root, content, edited, flip, read, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost, SnapshotError, SnapshotIncomplete
from ftrain_snapshot.frames import connect_unix
from ftrain_snapshot.handshake import PREFIX
from ftrain_snapshot.holdings import explain
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.messages import Membership, Peer, SnapshotId

SIZE = 4_300_000
"""Five chunks, the last one short."""
root = pytest.fixture(cluster_root)


@pytest.fixture(scope="module")
def nodes():
    folder = cluster_root()
    cluster = Cluster(next(folder), 4, lanes=2)
    yield cluster
    cluster.stop()
    next(folder, None)


@pytest.fixture
def cluster(nodes):
    """Four nodes in a new generation that starts from nothing."""
    for position, node in enumerate(nodes.nodes):
        if node.process.poll() is not None:
            nodes.replace(position)
    nodes.configure()
    nodes.wait_restored()
    nodes.reserve(SIZE)
    return nodes


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


def volumes(cluster: Cluster, name: str) -> list[int]:
    """That figure of the newest snapshot protected, by position."""
    return [getattr(cluster.status(p).last, name) for p in range(len(cluster.nodes))]


def test_what_did_not_change_is_neither_copied_nor_sent_nor_coded(cluster):
    def first(position, lane):
        return content(0, position, lane, SIZE)

    for version in range(2):
        snapshot = cluster.snapshot(version, SIZE, data=first)
        cluster.wait_protected(version)
    for name in ("copied_bytes", "sent_bytes", "received_bytes", "coded_bytes"):
        assert volumes(cluster, name) == [0] * 4
    assert volumes(cluster, "kept_chunks") == [
        4,
        4,
        4,
        2,
    ]  # two lanes of two stripes; five chunks make no fifth rotation
    cluster.nodes[1].lose()
    cluster.replace(1)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE, first)


@pytest.mark.parametrize("who", [(0,), (1, 3), (0, 1, 2, 3)])
def test_parity_is_right_whoever_changes_and_only_what_it_takes_is_fetched(cluster, who):
    states = {(p, lane): content(0, p, lane, SIZE) for p in range(4) for lane in range(2)}
    cluster.snapshot(0, SIZE, data=lambda p, lane: states[p, lane])
    cluster.wait_protected(0)
    for version in range(1, 5):
        for position in who:
            states[position, 1] = edited(states[position, 1], (version % 3, 4), version)
        snapshot = cluster.snapshot(version, SIZE, data=lambda p, lane: states[p, lane])
        cluster.wait_protected(version)
        changed = [p in who for p in range(4)]
        assert [sent > 0 for sent in volumes(cluster, "sent_bytes")] == changed
        assert [copied > 0 for copied in volumes(cluster, "copied_bytes")] == changed
        assert sum(volumes(cluster, "coded_bytes")) <= 4 * sum(volumes(cluster, "sent_bytes"))
        assert sum(volumes(cluster, "kept_chunks")) > 4 * 2
    for position in (2, 1):
        cluster.nodes[position].lose()
        cluster.replace(position)
        cluster.configure(snapshot)
        cluster.wait_restored()
        cluster.check(snapshot, SIZE, lambda p, lane: states[p, lane])
        cluster.wait_protected(snapshot.version)


def test_chunks_are_sent_and_coded_before_the_seal(cluster):
    cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    snapshot, before = cluster.take(1), cluster.status(1).last
    captures = [
        capture(node.dir, lane, snapshot, content(1, p, lane, SIZE), b"manifest %d" % lane)
        for p, node in enumerate(cluster.nodes)
        for lane in range(2)
    ]
    for index, captured in enumerate(captures):
        captured.publish(3)
        cluster.nodes[index // 2].agent.captured(captured.number, snapshot)
    parity = arena.parity_path(cluster.nodes[1].dir, snapshot.slot, 0, 1)
    # In rotation 1 position 1 keeps parity; of position 0 it is the first chunk, of 2 and 3 the second.
    parts = [content(1, p, 0, SIZE)[(p > 0) * CHUNK_BYTES :][:100] for p in (0, 2, 3)]
    expected = bytes(a ^ b ^ c for a, b, c in zip(*parts, strict=True))
    wait_until(lambda: parity.read_bytes()[:100] == expected, what="parity of what is not sealed yet")
    assert cluster.protected() == 0
    assert cluster.status(1).last == before
    for index, captured in enumerate(captures):
        captured.finish()
        cluster.nodes[index // 2].agent.sealed(captured.number, snapshot)
        captured.lane.close()
    cluster.wait_protected(1)
    cluster.check(snapshot, SIZE)


@pytest.mark.parametrize("torn", [False, True])
def test_a_capture_that_dies_half_way_leaves_nothing_behind(cluster, torn):
    first = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    dying = cluster.take(1)
    for position, node in enumerate(cluster.nodes):
        with capture(node.dir, 0, dying, content(1, position, 0, SIZE), b"") as captured:
            captured.publish(2 + position)
            node.agent.captured(0, dying)
    assert cluster.newest() == first
    if torn:
        cluster.nodes[2].agent.skip(dying)
    else:  # the workers died: a new generation
        cluster.configure(first)
        cluster.wait_restored()
    snapshot = cluster.snapshot(2, SIZE)
    cluster.wait_protected(2)
    assert {h.snapshot for held in cluster.holdings().values() for h in held} == {first, snapshot}
    cluster.check(first, SIZE)
    cluster.nodes[3].lose()
    cluster.replace(3)
    cluster.configure(snapshot)
    cluster.wait_restored()
    cluster.check(snapshot, SIZE)


def test_a_daemon_that_missed_a_snapshot_fetches_what_it_takes_to_protect_it(cluster):
    states = {(p, lane): content(0, p, lane, SIZE) for p in range(4) for lane in range(2)}
    cluster.snapshot(0, SIZE, data=lambda p, lane: states[p, lane])
    cluster.wait_protected(0)
    snapshot = cluster.take(1)
    cluster.nodes[2].kill_daemon()
    for position, lane in states:
        cluster.write(position, lane, snapshot, states[position, lane])
        if position != 2:
            cluster.nodes[position].agent.sealed(lane, snapshot)
    cluster.nodes[2].start()
    cluster.nodes[2].ready()
    cluster.configure(resumed=True)
    cluster.wait_restored()
    cluster.wait_protected(1)
    wait_until(lambda: cluster.status().exposed_seconds == 0)


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


def test_garbage_closes_one_connection_and_nothing_else(cluster):
    for node in cluster.nodes[:2]:
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n" * 10, os.urandom(5000), struct.pack("<II", 2**31, 2**31)):
            with socket.create_connection(("127.0.0.1", node.port), 2) as stranger:
                stranger.sendall(garbage)
            with connect_unix(node.dir / "daemon.sock", 2) as stranger:
                stranger.sendall(garbage)
        with socket.create_connection(("127.0.0.1", node.port), 2) as stranger:
            stranger.sendall(PREFIX + bytes(64))  # the right words, the wrong proof
            while stranger.recv(4096):
                pass
    snapshot = cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    cluster.check(snapshot, SIZE)


def test_too_little_memory_is_said_with_what_is_needed(cluster):
    with pytest.raises(ArenaTooSmall) as caught:
        cluster.nodes[0].agent.reserve(0, 1 << 45)
    assert caught.value.needed_bytes > 4 << 45 > caught.value.available_bytes > 0
    assert arena.home_path(cluster.nodes[0].dir, 0, 0).stat().st_size < 2 * SIZE


def test_lanes_grow_and_other_nodes_parity_with_them(cluster):
    cluster.snapshot(0, SIZE)
    cluster.wait_protected(0)
    cluster.nodes[2].agent.reserve(0, 8 * SIZE)
    snapshot = cluster.take(1)
    for position in range(4):
        for lane in range(2):
            data = Random(position).randbytes(8 * SIZE if (position, lane) == (2, 0) else 1000)
            cluster.write(position, lane, snapshot, data)
            cluster.nodes[position].agent.sealed(lane, snapshot)
    cluster.wait_protected(1)
    cluster.nodes[2].lose()
    cluster.replace(2)
    cluster.configure(snapshot)
    cluster.wait_restored()
    assert read(cluster.nodes[2].dir, 0, snapshot)[0] == Random(2).randbytes(8 * SIZE)


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


def test_a_daemon_ends_by_itself_some_time_after_its_last_agent_and_removes_its_files(root):
    secret = root / "secret"
    root.mkdir()
    secret.write_text("ab" * 32)
    deep = root.joinpath(*["a-folder-with-a-long-name"] * 5)
    node = Node(deep, "node-0", secret, grace_seconds=0.3).ready()
    try:
        node.agent.configure(Membership(1, 0, 1, 0, (Peer(0, "node-0", "127.0.0.1", node.port),)))
        node.agent.reserve(0, 1000)
        time.sleep(0.4)
        assert node.process.poll() is None
        before = sum(os.times()[2:4])
        node.agent.close()
        assert node.process.wait(60) == 0
        assert sum(os.times()[2:4]) - before < 3.0  # most of it for its imports
        assert not node.dir.exists()
        with pytest.raises(DaemonLost):
            node.agent.status()
    finally:
        node.stop()


def test_a_daemon_asked_to_end_by_signal_removes_its_files_and_idles_without_cpu(root):
    cluster = Cluster(root, 2)
    try:
        cluster.configure()
        cluster.wait_restored()
        page = ControlPage(cluster.nodes[0].dir)
        wait_until(lambda: page.gate()[1] >= 0)
        page.close()

        def ticks() -> int:
            fields = Path(f"/proc/{cluster.nodes[0].process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        def idles() -> bool:
            before = ticks()
            time.sleep(0.5)
            return ticks() - before <= 1

        wait_until(idles, 60, "half a second without work")
        cluster.nodes[0].process.send_signal(signal.SIGTERM)
        assert cluster.nodes[0].process.wait(60) == 0
        assert not cluster.nodes[0].dir.exists()
    finally:
        cluster.stop()
