"""A daemon's own affairs: garbage on its sockets, too little memory, lanes that grow, and its end."""

import os
import signal
import socket
import struct
import time
from pathlib import Path
from random import Random

import pytest
from integration.four_nodes import SIZE, four_nodes, new_generation
from snapshot_nodes import Cluster, Node, cluster_root, read, wait_until

from ftrain_snapshot import arena
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost
from ftrain_snapshot.frames import connect_unix
from ftrain_snapshot.handshake import PREFIX
from ftrain_snapshot.membership import Membership, Peer

root = pytest.fixture(cluster_root)
nodes = pytest.fixture(four_nodes, scope="module")
cluster = pytest.fixture(new_generation)


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
