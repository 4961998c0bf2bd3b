"""Nodes for the snapshot tests: real daemons, and workers that do nothing but capture. No torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.holdings import newest_complete
from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import (
    CHUNK_BYTES,
    NO_SNAPSHOT,
    Header,
    State,
    checksum,
    chunk_bytes,
    chunk_count,
    unit_bytes,
)
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.status import DaemonStatus
from ftrain_snapshot.words import SnapshotId

WAIT_SECONDS = 120.0
"""Milliseconds on a quiet machine; but the suite may share two cores with others."""


def wait_until(
    condition: Callable[[], bool], seconds: float = WAIT_SECONDS, what: str = "", *, every_seconds: float = 0.001
) -> None:
    """Look again and again, by default every millisecond."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every_seconds)


def flip(path: Path, offset: int) -> None:
    """One bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


class Node:
    """One emulated node: a folder, a daemon, its agent's client."""

    def __init__(
        self, root: Path, name: str, secret_file: Path, grace_seconds: float = 20.0, flags: Sequence[str] = ()
    ) -> None:
        self.name, self._flags = name, flags
        self.dir = root / name
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._secret_file = secret_file
        self._grace_seconds = grace_seconds
        self.start()

    def start(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "ftrain_snapshot.daemon", "--node", self.name, "--node-dir", str(self.dir)]
        command += ["--port", str(port), *self._flags]
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
        self.process.wait(WAIT_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.agent.close()

    def lose(self) -> None:
        self.kill_daemon()
        shutil.rmtree(self.dir)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.agent.shutdown()
            assert self.process.wait(WAIT_SECONDS) == 0
        self.agent.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Cluster:
    """A job's nodes, by position, and what their workers would do."""

    def __init__(
        self,
        root: Path,
        nodes: int,
        *,
        lanes: int = 1,
        parity: int = 1,
        grace_seconds: float = 20,
        codec: str = "auto",
        flags: Sequence[str] = (),
    ) -> None:
        self.root, self.lanes, self.parity, self.grace_seconds = root, lanes, parity, grace_seconds
        self.codec, self.flags = codec, flags
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
        return Node(self.root, f"node-{self._names - 1}", self.secret_file, self.grace_seconds, self.flags)

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
                Membership(
                    self.generation, position, self.lanes, self.parity, peers, restore, resumed, codec=self.codec
                )
            )

    def wait_restored(self, seconds: float = WAIT_SECONDS) -> None:
        for node in self.nodes:
            node.agent.wait_restored(self.generation, seconds)

    def reserve(self, data_bytes: int) -> None:
        for node in self.nodes:
            for lane in range(self.lanes):
                node.agent.reserve(lane, data_bytes)

    def take(self, version: int, seconds: float = WAIT_SECONDS) -> SnapshotId:
        """What rank 0 does at a commit: wait for an open gate, and use it once."""
        page = ControlPage(self.nodes[0].dir)
        wait_until(lambda: page.gate()[1] >= 0 and page.gate()[0] > self.ticket, seconds, f"gate for {version}")
        self.ticket, slot = page.gate()
        page.close()
        return SnapshotId(version, self.generation, slot)

    def write(self, position: int, lane: int, snapshot: SnapshotId, data: bytes, digest: int = 7) -> None:
        """Capture one lane, without telling the daemon."""
        with capture(self.nodes[position].dir, lane, snapshot, data, b"manifest %d" % lane, digest=digest) as captured:
            captured.finish()

    def snapshot(
        self, version: int, size: int, *, tell: bool = True, data: Callable[[int, int], bytes] | None = None
    ) -> SnapshotId:
        """Every lane of every node captures ``version``: ``data(position, lane)``, by default all of it new."""
        snapshot = self.take(version)
        for position, node in enumerate(self.nodes):
            for lane in range(self.lanes):
                mine = data(position, lane) if data is not None else content(version, position, lane, size)
                self.write(position, lane, snapshot, mine)
                if tell:
                    node.agent.sealed(lane, snapshot)
        return snapshot

    def status(self, position: int = 0) -> DaemonStatus:
        return self.nodes[position].agent.status()

    def protected(self) -> int | None:
        return self.status().levels.protected

    def wait_protected(self, version: int, seconds: float = WAIT_SECONDS) -> None:
        wait_until(lambda: self.protected() == version, seconds, f"version {version} protected")

    def holdings(self) -> dict[int, tuple[Holding, ...]]:
        return {p: n.agent.inventory().holdings for p, n in enumerate(self.nodes) if n.process.poll() is None}

    def newest(self) -> SnapshotId | None:
        return newest_complete(self.holdings(), len(self.nodes), self.parity)

    def check(self, snapshot: SnapshotId, size: int, data: Callable[[int, int], bytes] | None = None) -> None:
        """Every byte of every lane is what was written."""
        for position, node in enumerate(self.nodes):
            for lane in range(self.lanes):
                found, manifest = read(node.dir, lane, snapshot)
                expected = data(position, lane) if data is not None else content(snapshot.version, position, lane, size)
                assert found == expected, (position, lane)
                assert manifest == b"manifest %d" % lane

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()


class capture:
    """What a worker does with its lane: chunk by chunk, keeping those that are as in the newest sealed snapshot."""

    def __init__(
        self, node_dir: Path, lane: int, snapshot: SnapshotId, data: bytes, manifest: bytes, *, digest: int = 7
    ) -> None:
        self.lane, self.number = Lane(node_dir, lane), lane
        self.snapshot = snapshot
        sealed = []
        for region in self.lane.regions:
            state, header = region.header()
            if state is State.SEALED and header is not None and region.slot != snapshot.slot:
                sealed.append((header.snapshot, header, region))
        self.reference = max(sealed, default=None, key=lambda item: item[0])
        self.unit = data + bytes(-len(data) % 64) + manifest
        self.unit += bytes(unit_bytes(len(data), len(manifest)) - len(self.unit))
        header = Header(
            snapshot, 0, 1, len(data), len(manifest), digest, checksum(manifest),
            self.reference[0] if self.reference else NO_SNAPSHOT,
        )  # fmt: skip
        self.region = self.lane.regions[snapshot.slot]
        self.region.begin(header)
        self.chunks = chunk_count(len(self.unit))
        self.done = self.copied = 0

    def publish(self, chunks: int) -> None:
        """The next ``chunks`` are copied, or kept."""
        for chunk in range(self.done, min(self.done + chunks, self.chunks)):
            piece = self.unit[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
            if self.reference is not None:
                _, header, region = self.reference
                if chunk_bytes(header.unit_bytes, chunk) == len(piece) and region.sum(chunk) == checksum(piece):
                    self.region.keep(chunk, region)
                    self.done = chunk + 1
                    continue
            self.region.place(chunk)
            self.region.put(chunk * CHUNK_BYTES, piece)
            self.region.record(chunk, checksum(piece))
            self.copied += len(piece)
            self.done = chunk + 1
        self.region.publish(self.done, self.copied)

    def finish(self) -> None:
        self.publish(self.chunks)
        self.region.seal()

    def __enter__(self) -> capture:
        return self

    def __exit__(self, *_: object) -> None:
        self.lane.close()


def read(node_dir: Path, lane: int, snapshot: SnapshotId) -> tuple[bytes, bytes]:
    """(data, manifest) of a sealed lane."""
    mapped = Lane(node_dir, lane)
    region = mapped.regions[snapshot.slot]
    header, manifest = region.read(snapshot)
    data = b"".join(region.spans(0, header.data_bytes))
    mapped.close()
    return data, manifest


def edited(data: bytes, chunks: tuple[int, ...], version: int) -> bytes:
    """The same, with one word changed in each of these chunks."""
    out = bytearray(data)
    for chunk in chunks:
        out[chunk * CHUNK_BYTES + 5 : chunk * CHUNK_BYTES + 13] = Random(f"{version} {chunk}").randbytes(8)
    return bytes(out)


def content(version: int, position: int, lane: int, size: int) -> bytes:
    """Unmistakable bytes; lanes are not equally long."""
    piece = Random(f"{version} {position} {lane}").randbytes(100_003)
    return (piece * (size // len(piece) + 1))[: size - 64 * lane - 100 * position]


def cluster_root() -> Iterator[Path]:
    """A folder in shared memory, removed afterwards."""
    root = Path("/dev/shm") / f"ftrain-test-{os.getpid()}-{time.monotonic_ns()}"
    yield root
    shutil.rmtree(root, ignore_errors=True)
