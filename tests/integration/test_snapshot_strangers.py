"""A real daemon whose port is scanned: garbage, half frames, old secrets, silence, and one byte at a time.

Each attack runs while the daemon serves its agent and a peer. Afterwards it is alive, has answered in time, holds no
more sockets or memory than before, and the peers that were linked still are: a snapshot is protected.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import msgspec
import pytest
from certificates import make_certificates
from snapshot_nodes import Cluster, Node, cluster_root, wait_until

from ftrain_snapshot.client import SOCKET_NAME, DaemonClient
from ftrain_snapshot.frames import connect_unix, encode_frame
from ftrain_snapshot.handshake import PREFIX, Handshake
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.peer_frames import HEAD_BYTES_MAX, encode_message, encode_prefix
from ftrain_snapshot.strangers import UNPROVED_MAX
from ftrain_snapshot.transport import HANDSHAKE_TIMEOUT_SECONDS
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.wire import PeerHello

SIZE = 300_000
ANSWER_SECONDS_MAX = 20.0
"""For a status: milliseconds, unless the machine has no processor for it."""
BUSY_SECONDS = 30.0
"""What a busy machine may take longer."""
GROWTH_BYTES_MAX = 16 << 20
DEEP = b"\x91" * 100_000 + b"\xc0"
NOT_TEXT = b"\xa2\xff\xfe"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = cluster_root()
    made = Cluster(next(folder), 2)
    made.configure()
    made.wait_restored()
    made.reserve(SIZE)
    made.snapshot(0, SIZE)
    made.wait_protected(0)
    yield made
    made.stop()
    next(folder, None)


def memory_bytes(node: Node) -> int:
    """Resident memory of its own: neither the arena nor the libraries."""
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


def open_files(node: Node) -> int:
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


class Siege:
    """The gate's daemon before, during and after an attack."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.node = cluster, cluster.nodes[0]
        self.secret = bytes.fromhex(cluster.secret_file.read_text())
        self.links = self._links()
        self.files, self.memory = open_files(self.node), memory_bytes(self.node)
        self.connections = ExitStack()

    def _links(self) -> int:
        log = (self.cluster.root / f"{self.node.name}.log").read_text()
        return log.count("event=peer_lost")

    def connect(self) -> socket.socket:
        sock = self.connections.enter_context(socket.create_connection(("127.0.0.1", self.node.port), timeout=10))
        return sock

    def unix(self) -> socket.socket:
        return self.connections.enter_context(connect_unix(self.node.dir / SOCKET_NAME))

    def answered(self) -> None:
        start = time.monotonic()
        self.node.agent.status()
        assert time.monotonic() - start < ANSWER_SECONDS_MAX

    def over(self) -> None:
        """All attackers gone: everything is as it was."""
        self.answered()
        self.connections.close()
        wait_until(lambda: open_files(self.node) <= self.files, what="the attackers' sockets closed")
        assert self.node.process.poll() is None
        assert memory_bytes(self.node) - self.memory < GROWTH_BYTES_MAX
        assert self._links() == self.links, "a linked peer was disturbed"


@pytest.fixture
def siege(cluster: Cluster) -> Iterator[Siege]:
    made = Siege(cluster)
    yield made
    made.over()


def prove(sock: socket.socket, secret: bytes) -> None:
    """A dialler's half of the handshake. To one whose proof is wrong, the daemon hangs up."""
    handshake = Handshake(secret, dialled=True)
    sock.sendall(handshake.greeting)
    answer = b""
    while len(answer) < 50 and (data := sock.recv(50 - len(answer))):
        answer += data
    proof = handshake.feed(answer)
    assert proof is not None
    sock.sendall(proof)


def closed(sock: socket.socket, seconds: float = BUSY_SECONDS) -> bool:
    """Whether the daemon hangs up in time."""
    sock.settimeout(seconds)
    try:
        while sock.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_garbage_is_turned_away_at_its_first_bytes(siege: Siege):
    random = Random(3)
    socks = []
    for number in range(100):
        sock = siege.connect()
        with suppress(ConnectionError):
            sock.sendall(
                random.randbytes(random.choice([1, 49, 50, 5000, 500_000])) if number else b"GET / HTTP/1.1\r\n\r\n" * 9
            )
        socks.append(sock)
        if number % 20 == 0:
            siege.answered()
    assert closed(socks[0])


def test_half_handshakes_leave_nothing(siege: Siege):
    for length in (1, 18, 49, 50, 51, 81):
        for _ in range(5):
            sock = siege.connect()
            sock.sendall((Handshake(b"x", dialled=True).greeting + bytes(32))[:length])
            sock.close()
    sock = siege.connect()
    sock.sendall(PREFIX + bytes(32) + bytes(32))
    assert closed(sock)
    siege.answered()


def test_an_old_secret_opens_nothing(siege: Siege):
    for _ in range(20):
        sock = siege.connect()
        prove(sock, os.urandom(32))
        assert closed(sock)
    sock = siege.connect()
    prove(sock, siege.secret)
    assert not closed(sock, seconds=0.3)
    siege.answered()


def test_two_hundred_silent_ones_do_not_keep_the_peers_of_a_new_generation_out(cluster: Cluster):
    siege = Siege(cluster)
    for _ in range(200):
        siege.connect()
        siege.cluster.nodes[1].agent.status()
    prove(siege.connect(), siege.secret)
    siege.answered()
    wait_until(lambda: open_files(siege.node) <= siege.files + UNPROVED_MAX + 1, what="the oldest were turned away")
    cluster.configure()
    cluster.wait_restored()
    cluster.snapshot(1, SIZE)
    cluster.wait_protected(1)
    siege.links = siege._links()  # the old generation's ended with it
    siege.over()


def test_who_dribbles_is_turned_away_in_time(siege: Siege):
    greeting = Handshake(siege.secret, dialled=True).greeting
    socks = [siege.connect() for _ in range(20)]
    start, sent, open_ones = time.monotonic(), 0, set(socks)
    while open_ones:
        assert time.monotonic() - start < HANDSHAKE_TIMEOUT_SECONDS + BUSY_SECONDS
        for sock in open_ones:
            with suppress(ConnectionError):
                sock.send(greeting[sent : sent + 1])
        sent = min(sent + 1, len(greeting) - 1)
        siege.answered()
        readable, _, _ = select.select(list(open_ones), [], [], 0.5)
        for sock in readable:
            with suppress(ConnectionError):
                if sock.recv(4096):
                    continue
            open_ones.discard(sock)
    assert time.monotonic() - start > HANDSHAKE_TIMEOUT_SECONDS - 1


def test_a_proved_peer_gone_mad_harms_only_itself(siege: Siege):
    hello = bytes(encode_message(PeerHello(1, 1, "node-1", 0), 0, Traffic.MESSAGE))
    mad = [
        (2**32 - 1).to_bytes(4, "little") * 3,
        (HEAD_BYTES_MAX + 1).to_bytes(4, "little") + bytes(8),
        bytes(4) + (CHUNK_BYTES + 1).to_bytes(4, "little") + bytes(4),
        bytes(4) + bytes(4) + b"\x09\0\0\0",
        hello[:40] + b"\xff" + hello[41:],
        *(encode_prefix(head, 0, Traffic.MESSAGE) + head for head in (DEEP, NOT_TEXT, b"\xc1")),
        Random(1).randbytes(500_000),
    ]
    for stream in mad:
        sock = siege.connect()
        prove(sock, siege.secret)
        with suppress(ConnectionError):
            sock.sendall(stream + bytes(64))
        assert closed(sock)
        siege.answered()
    for _ in range(20):  # announced, and never sent
        sock = siege.connect()
        prove(sock, siege.secret)
        sock.sendall(encode_prefix(bytes(HEAD_BYTES_MAX), 0, Traffic.MESSAGE) + bytes(1000))
    siege.answered()
    assert memory_bytes(siege.node) - siege.memory < GROWTH_BYTES_MAX


def test_a_client_gone_mad_harms_only_itself(siege: Siege):
    random = Random(5)
    bodies = [
        DEEP,
        NOT_TEXT,
        b"",
        b"\xc1",
        random.randbytes(1000),
        b"\x81\xa4type\xa4none",
        b"\x82\xa4type\xa5hello\xa4role" + NOT_TEXT,
    ]
    bodies.append(msgspec.msgpack.encode({"type": "configure", "membership": {"generation": 1}}))
    for body in bodies:
        sock = siege.unix()
        sock.sendall(encode_frame(body))
        assert closed(sock)
        siege.answered()
    for stream in (b"\xff" * 4, random.randbytes(100_000)):
        sock = siege.unix()
        with suppress(ConnectionError):
            sock.sendall(stream)
        sock.shutdown(socket.SHUT_WR)
        assert closed(sock)
    for _ in range(50):
        siege.unix().sendall(b"\x10")
    siege.answered()


def test_what_the_daemon_keeps_is_private_to_its_user(cluster: Cluster):
    for node in cluster.nodes:
        assert stat.S_IMODE(node.dir.stat().st_mode) == 0o700
        for path in node.dir.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_daemons_link_over_tls_and_answer_nobody_in_the_clear(tmp_path: Path):
    """Started by hand: with certificates of one authority, and one that speaks plainly."""
    certificates = make_certificates(tmp_path / "certificates")
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32)
    daemons: list[tuple[subprocess.Popen[bytes], int]] = []
    folder = cluster_root()
    root = next(folder)
    root.mkdir()
    with ExitStack() as stack:
        for position in range(2):
            command = [sys.executable, "-m", "ftrain_snapshot.daemon", "--node", f"n{position}"]
            command += ["--node-dir", str(root / f"n{position}"), "--secret-file", str(secret)]
            log = stack.enter_context(open(root / f"{position}.log", "wb"))
            process = stack.enter_context(
                subprocess.Popen([*command, *certificates.arguments()], stdout=subprocess.PIPE, stderr=log)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            word, port = process.stdout.readline().split()
            assert word == b"ready"
            daemons.append((process, int(port)))
        peers = tuple(Peer(i, f"n{i}", "127.0.0.1", port) for i, (_, port) in enumerate(daemons))
        agents = [DaemonClient(root / f"n{i}", role="agent") for i in range(2)]
        for position, agent in enumerate(agents):
            agent.configure(Membership(1, position, 1, 1, peers))
        for position in range(2):
            linked = root / f"{position}.log"
            wait_until(lambda path=linked: b"event=peer_linked" in path.read_bytes(), what="linked")
        with socket.create_connection(("127.0.0.1", daemons[0][1]), timeout=10) as plain:
            plain.sendall(Handshake(bytes.fromhex("ab" * 32), dialled=True).greeting)
            assert closed(plain)
        for (process, _), agent in zip(daemons, agents, strict=True):
            agent.shutdown()
            agent.close()
            assert process.wait(10) == 0
    next(folder, None)
