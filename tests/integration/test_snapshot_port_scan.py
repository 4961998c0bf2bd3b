"""The daemons' ports are scanned while a job trains: it does not notice.

Both daemons are attacked at once, again and again: garbage, connections held open half way, bytes one at a time,
another secret, a recorded conversation, impossible lengths, and a peer of a generation that is over. Training goes on
at its pace, snapshots go on being protected, the daemons do not grow, and the end is that of an undisturbed job.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest
from jobs import Job, holding, ranks_of

from ftrain_launcher.jobs import JobFolder
from ftrain_snapshot.handshake import PREFIX, Handshake
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.peer_frames import HEAD_BYTES_MAX, encode_message, encode_prefix
from ftrain_snapshot.strangers import UNPROVED_MAX
from ftrain_snapshot.usage import Traffic
from ftrain_snapshot.wire import PeerHello

FLAGS = ("--local-nodes", "2")
STEPS = 240
ARGUMENTS = ("--steps", str(STEPS))
QUIET_STEPS = 40
ROUNDS_MAX = 12
GROWTH_BYTES_MAX = 16 << 20
PACE_MIN = 0.1
"""Of the pace before: the attackers need processor time of the same cores, and who else works there comes and goes."""
CLOSE_SECONDS = 60.0
"""A daemon hangs up at once, if it has a processor."""


class Target:
    """A daemon, as somebody on its host finds it."""

    def __init__(self, pid: int, secret: Path) -> None:
        self.pid = pid
        self.secret = bytes.fromhex(secret.read_text())
        self.port = _listening_port(pid)
        self.memory_bytes = self.memory()

    def memory(self) -> int:
        """Its own resident memory, which is neither the arena nor libraries."""
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _listening_port(pid: int) -> int:
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            return int(fields[1].split(":")[1], 16)
    raise AssertionError(f"process {pid} does not listen")


class Attack:
    """Everything that is tried, in rounds; connections that are held stay open until the end."""

    def __init__(self, targets: list[Target]) -> None:
        self.targets = targets
        self.random = Random(7)
        self.held = ExitStack()
        self.dribblers: list[tuple[socket.socket, bytes]] = []
        self.turned_away = self.attempts = 0
        self.recorded = {target.port: self._record(target) for target in targets}

    def connect(self, target: Target) -> socket.socket:
        self.attempts += 1
        return self.held.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=CLOSE_SECONDS))

    def prove(self, target: Target, secret: bytes) -> tuple[socket.socket, bytes]:
        """A dialler's half of the handshake; what it sent."""
        sock, handshake = self.connect(target), Handshake(secret, dialled=True)
        sock.sendall(handshake.greeting)
        answer = b""
        while len(answer) < len(handshake.greeting) and (data := sock.recv(len(handshake.greeting) - len(answer))):
            answer += data
        proof = handshake.feed(answer)
        assert proof is not None
        sock.sendall(proof)
        return sock, handshake.greeting + proof

    def _record(self, target: Target) -> bytes:
        sock, said = self.prove(target, target.secret)
        sock.close()
        return said

    def must_close(self, sock: socket.socket) -> None:
        with suppress(ConnectionError):
            while sock.recv(1 << 16):  # TimeoutError: the daemon talks to it, or waits
                pass
        self.turned_away += 1
        sock.close()

    def round(self) -> None:
        for target in self.targets:
            self._garbage(target)
            self._old_secret(target)
            self._replay(target)
            self._half_way(target)
            self._impossible(target)
        self._dribble()

    def _garbage(self, target: Target) -> None:
        for noise in (b"GET / HTTP/1.1\r\n\r\n" * 9, self.random.randbytes(200_000), b"\xff" * 64):
            sock = self.connect(target)
            with suppress(ConnectionError):
                sock.sendall(noise)
            self.must_close(sock)

    def _old_secret(self, target: Target) -> None:
        self.must_close(self.prove(target, self.random.randbytes(32))[0])

    def _replay(self, target: Target) -> None:
        sock = self.connect(target)
        with suppress(ConnectionError):
            sock.sendall(self.recorded[target.port])
            sock.sendall(bytes(encode_message(PeerHello(1, 1, "node-1", 0), 0, Traffic.MESSAGE)))
        self.must_close(sock)

    def _half_way(self, target: Target) -> None:
        """Held open: nothing, half a greeting, a greeting; and half a frame of one that knows the secret."""
        for said in (b"", PREFIX, (PREFIX + self.random.randbytes(32))[:-1], PREFIX + self.random.randbytes(32)):
            for _ in range(5):
                self.connect(target).sendall(said)
        sock, _ = self.prove(target, target.secret)
        sock.sendall(encode_prefix(bytes(HEAD_BYTES_MAX), CHUNK_BYTES, Traffic.PROTECT) + bytes(1000))

    def _impossible(self, target: Target) -> None:
        for head, body in ((2**32 - 1, 2**32 - 1), (HEAD_BYTES_MAX + 1, 0), (0, CHUNK_BYTES + 1)):
            sock, _ = self.prove(target, target.secret)
            prefix = head.to_bytes(4, "little") + body.to_bytes(4, "little") + bytes(16)
            sock.sendall(prefix)
            self.must_close(sock)

    def old_generation(self, target: Target, generation: int, position: int) -> None:
        """Whoever knows the secret, and still believes in a generation that is over."""
        sock, _ = self.prove(target, target.secret)
        hello = PeerHello(generation, position, f"node-{position}", 1 - position)
        sock.sendall(bytes(encode_message(hello, 0, Traffic.MESSAGE)))
        self.must_close(sock)

    def _dribble(self) -> None:
        """A byte of each greeting, a round."""
        if len(self.dribblers) < 40:
            for target in self.targets:
                self.dribblers += [(self.connect(target), PREFIX + bytes(32)) for _ in range(5)]
        left = []
        for sock, rest in self.dribblers:
            with suppress(OSError):
                sock.sendall(rest[:1])
                left.append((sock, rest[1:] or b"\0"))
        self.dribblers = left


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Job]]:
    made = [Job(tmp_path / "undisturbed", *FLAGS, arguments=ARGUMENTS)]
    try:
        assert made[0].wait() == 0, made[0].tail()
        made.append(Job(tmp_path / "scanned", *FLAGS, arguments=(*ARGUMENTS, *holding(STEPS - 1))))
        yield made
    finally:
        for job in made:
            job.close()


def slowest(status: dict) -> int:
    """The step that all ranks have committed."""
    return min(rank["step"] for rank in ranks_of(status).values())


def pace(job: Job, steps: int) -> float:
    """Steps a second, over so many."""
    status = job.wait_step(0)
    first, start = slowest(status), time.monotonic()
    job.wait_step(first + steps)
    return steps / (time.monotonic() - start)


@pytest.mark.alone
def test_a_job_trains_on_while_its_daemons_are_scanned(jobs: list[Job]) -> None:
    undisturbed, job = jobs
    job.wait_step(20)
    job.kill_rank(1)  # so that there is an old generation
    status = job.wait_for(lambda s: s if s["generation"] == 2 and s["state"] == "running" else None, "generation 2")
    quiet = pace(job, QUIET_STEPS)
    status = job.wait_step(20 + QUIET_STEPS)
    protected = status["snapshots"]["protected"]
    secret = JobFolder(job.folder / "home" / "jobs" / job.name).secret
    targets = [Target(node["daemon_pid"], secret) for node in status["nodes"]]
    attack = Attack(targets)
    with attack.held:
        start, first, rounds = time.monotonic(), slowest(job.wait_step(0)), 0
        while rounds < ROUNDS_MAX and slowest(status) < STEPS - 20:  # then it is about to wait
            attack.round()
            for position, target in enumerate(targets):
                attack.old_generation(target, 1, 1 - position)
            rounds, status = rounds + 1, job.wait_step(0)
            busy = (slowest(status) - first) / (time.monotonic() - start)
        assert rounds
        assert attack.turned_away > 10 * rounds
        for target in targets:
            assert target.open_files() < 2 * UNPROVED_MAX + 8 * rounds, "they are not turned away"
            assert target.memory() - target.memory_bytes < GROWTH_BYTES_MAX
        assert busy > PACE_MIN * quiet, f"{busy:.0f} steps a second, {quiet:.0f} before"
        job.wait_for(lambda s: (s["snapshots"]["protected"] or 0) > protected + 20, "snapshots protected meanwhile")
    job.go(STEPS - 1)
    assert job.wait() == 0, job.tail()
    assert job.ends() == undisturbed.ends()
    assert [node["daemon_pid"] for node in status["nodes"]] == [target.pid for target in targets]
    assert len(job.faults()) == 1
