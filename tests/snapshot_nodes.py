"""Nodes for the snapshot tests: real daemons, and workers that are nothing but regions. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from ftrain_snapshot.arena import ControlPage, Region
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.ledger import newest_complete
from ftrain_snapshot.messages import Holding, Membership, Peer, SnapshotId


def wait_until(condition: Callable[[], bool], seconds: float = 10.0, what: str = "") -> None:
    """Look again every millisecond."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.001)


class Node:
    """One emulated node: a folder, a daemon, its agent's client."""

    def __init__(self, root: Path, name: str, secret_file: Path, grace_seconds: float = 20.0) -> None:
        self.name = name
        self.dir = root / name
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._secret_file = secret_file
        self._grace_seconds = grace_seconds
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "ftrain_snapshot.daemon", "--node", self.name, "--node-dir", str(self.dir)]
        command += ["--secret-file", str(self._secret_file), "--grace-seconds", str(self._grace_seconds)]
        path = str(Path(__file__).parents[1] / "snapshot")
        with open(self.dir.parent / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )

    def ready(self) -> Node:
        assert self.process.stdout is not None
        word, port = self.process.stdout.readline().split()
        assert word == b"ready"
        self.port = int(port)
        self.agent = DaemonClient(self.dir, role="agent")
        return self

    def kill_daemon(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.agent.close()

    def lose(self) -> None:
        self.kill_daemon()
        shutil.rmtree(self.dir)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.agent.shutdown()
            assert self.process.wait(10) == 0
        self.agent.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Cluster:
    """A job's nodes, by position, and what their workers would do."""

    def __init__(self, root: Path, nodes: int, *, lanes: int = 1, parity: int = 1, grace_seconds: float = 20) -> None:
        self.root, self.lanes, self.parity, self.grace_seconds = root, lanes, parity, grace_seconds
        root.mkdir(parents=True, exist_ok=True)
        self.secret_file = root / "secret"
        self.secret_file.write_text(os.urandom(32).hex())
        self.generation = 0
        self.ticket = 0
        self._names = 0
        self.nodes = [self._node() for _ in range(nodes)]
        for node in self.nodes:
            node.ready()

    def _node(self) -> Node:
        self._names += 1
        return Node(self.root, f"node-{self._names - 1}", self.secret_file, self.grace_seconds)

    def replace(self, position: int) -> Node:
        self.nodes[position] = self._node().ready()
        return self.nodes[position]

    def configure(self, restore: SnapshotId | None = None, *, resumed: bool = False) -> None:
        if not resumed:
            self.generation += 1
            self.ticket = 0
        peers = tuple(Peer(i, n.name, "127.0.0.1", n.port) for i, n in enumerate(self.nodes))
        for position, node in enumerate(self.nodes):
            node.agent.configure(
                Membership(self.generation, position, self.lanes, self.parity, peers, restore, resumed)
            )

    def wait_restored(self, seconds: float = 10.0) -> None:
        for node in self.nodes:
            node.agent.wait_restored(self.generation, seconds)

    def reserve(self, data_bytes: int) -> None:
        for node in self.nodes:
            for lane in range(self.lanes):
                node.agent.reserve(lane, data_bytes)

    def take(self, version: int, seconds: float = 10.0) -> SnapshotId:
        """What rank 0 does at a commit: wait for an open gate, and use it once."""
        page = ControlPage(self.nodes[0].dir)
        wait_until(lambda: page.gate()[1] >= 0 and page.gate()[0] > self.ticket, seconds, f"gate for {version}")
        self.ticket, slot = page.gate()
        page.close()
        return SnapshotId(version, self.generation, slot)

    def write(self, position: int, lane: int, snapshot: SnapshotId, data: bytes, digest: int = 7) -> None:
        region = Region.open(self.nodes[position].dir, snapshot.slot, lane, touch=False)
        region.begin(snapshot, position * self.lanes + lane, len(self.nodes) * self.lanes)
        region.data[: len(data)] = data
        region.seal(len(data), b"manifest %d" % lane, digest)
        region.close()

    def snapshot(self, version: int, size: int, *, tell: bool = True) -> SnapshotId:
        """Every lane of every node captures ``version``."""
        snapshot = self.take(version)
        for position, node in enumerate(self.nodes):
            for lane in range(self.lanes):
                self.write(position, lane, snapshot, content(version, position, lane, size))
                if tell:
                    node.agent.sealed(lane, snapshot)
        return snapshot

    def protected(self) -> int | None:
        return self.nodes[0].agent.status().levels.protected

    def wait_protected(self, version: int, seconds: float = 10.0) -> None:
        wait_until(lambda: self.protected() == version, seconds, f"version {version} protected")

    def holdings(self) -> dict[int, tuple[Holding, ...]]:
        return {p: n.agent.inventory().holdings for p, n in enumerate(self.nodes) if n.process.poll() is None}

    def newest(self) -> SnapshotId | None:
        return newest_complete(self.holdings(), len(self.nodes), self.parity)

    def check(self, snapshot: SnapshotId, size: int) -> None:
        """Every byte of every lane is what was written."""
        for position, node in enumerate(self.nodes):
            for lane in range(self.lanes):
                region = Region.open(node.dir, snapshot.slot, lane, touch=False)
                data, manifest = region.read(snapshot)
                assert bytes(data) == content(snapshot.version, position, lane, size), (position, lane)
                assert manifest == b"manifest %d" % lane
                del data
                region.close()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


def content(version: int, position: int, lane: int, size: int) -> bytes:
    """Unmistakable bytes; lanes are not equally long."""
    piece = Random(f"{version} {position} {lane}").randbytes(100_003)
    return (piece * (size // len(piece) + 1))[: size - 64 * lane - 100 * position]


def cluster_root() -> Iterator[Path]:
    """A folder in shared memory, removed afterwards."""
    root = Path("/dev/shm") / f"ftrain-test-{os.getpid()}-{time.monotonic_ns()}"
    yield root
    shutil.rmtree(root, ignore_errors=True)
