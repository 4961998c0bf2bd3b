"""One node for worker tests, in the test's own process: folder, store, agent and daemon, the last two in miniature.

The workers are real processes. The daemon's part here is only what a worker can see of it: lanes, a gate that
opens again once all lanes are sealed, answers. No parity, no peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR, socket
from typing import Any

import msgspec
from integration.worker_lane import allocate
from processes import environment

from ftrain.link import LinkMessage
from ftrain_snapshot import messages as m
from ftrain_snapshot.arena import SLOTS
from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.frames import bind_unix, recv_frame, send_frame
from ftrain_snapshot.words import SnapshotId

FORKER = Path(__file__).with_name("worker_forker.py")


class Server:
    """A unix socket whose connections are served by a thread each."""

    def __init__(self, path: Path) -> None:
        self._listener = bind_unix(path)
        self._connections: list[socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket) -> None:
        with suppress(OSError, EOFError), connection:
            while True:
                reply = self.handle(recv_frame(connection))
                if reply is not None:
                    send_frame(connection, reply)
                    connection.sendall(self.behind(reply))

    def handle(self, body: bytes) -> bytes | None:
        raise NotImplementedError

    def behind(self, reply: bytes) -> bytes:
        """What follows an answer, outside of its frame."""
        return b""

    def close(self) -> None:
        with suppress(OSError):  # closed before
            self._listener.shutdown(SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)


class Agent(Server):
    """Keeps what the workers say."""

    def __init__(self, node_dir: Path) -> None:
        self.messages: list[Any] = []
        self.arrived = threading.Condition()
        super().__init__(node_dir / "agent.sock")

    def handle(self, body: bytes) -> None:
        with self.arrived:
            self.messages.append(msgspec.msgpack.decode(body, type=LinkMessage))
            self.arrived.notify_all()

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.messages if type(message) is kind]


class Daemon(Server):
    """Allocates lanes and keeps the gate of a job with one node of ``lanes`` ranks."""

    def __init__(self, node_dir: Path, lanes: int) -> None:
        self._node_dir = node_dir
        self._lanes = lanes
        self._lock = threading.Lock()
        self._ticket = 0
        self._seals: dict[SnapshotId, set[int]] = {}
        self.sealed: list[SnapshotId] = []
        self.skips: list[SnapshotId] = []
        self.skipped: list[int] = []
        self.reserved: list[int] = []
        self.room_bytes: int | None = None
        self.control = ControlPage(node_dir, create=True)
        self.open(0)
        super().__init__(node_dir / "daemon.sock")

    def open(self, slot: int) -> None:
        self._ticket += 1
        self.control.open_gate(self._ticket, slot)

    def handle(self, body: bytes) -> bytes | None:
        with self._lock:
            reply = self._answer(msgspec.msgpack.decode(body, type=m.Request))
        return None if reply is None else msgspec.msgpack.encode(reply)

    def _answer(self, request: m.Request) -> m.Reply | None:
        match request:
            case m.Reserve(lane, data_bytes):
                if self.room_bytes is not None and data_bytes > self.room_bytes:
                    return m.TooSmall(data_bytes, self.room_bytes)
                self.reserved.append(data_bytes)
                with suppress(ArenaTooSmall):
                    allocate(self._node_dir, data_bytes, lane)
                return m.Done()
            case m.WaitRestored():
                return m.Done()
            case m.Sealed(lane, snapshot):
                self._seals.setdefault(snapshot, set()).add(lane)
                if len(self._seals[snapshot]) == self._lanes:
                    self.sealed.append(snapshot)
                    self.open((snapshot.slot + 1) % SLOTS)
            case m.Skip(snapshot):
                if snapshot not in self.skips:
                    self.open(snapshot.slot)
                self.skips.append(snapshot)
            case m.Skipped(version):
                self.skipped.append(version)
        return None

    def close(self) -> None:
        super().close()
        self.control.close()


class Forker:
    """A process with torch imported that forks workers, so that a test does not import it for each."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo"),
        )

    def run(self, script: Path, arguments: list[str], environments: list[dict[str, str]], output: Path) -> list[int]:
        """Run ``script`` once per environment, all at once; their exit codes (a signal's number is negative)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"script": str(script), "arguments": arguments, "environments": environments, "output": str(output)}
        print(json.dumps(order), file=self._process.stdin, flush=True)
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Node:
    """A job of one node."""

    def __init__(self, forker: Forker, folder: Path, ranks: int) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self.folder = folder
        self.ranks = ranks
        self.agent = Agent(folder)
        self.daemon = Daemon(folder, ranks)
        self.generation = 0
        self._forker = forker

    def run(
        self,
        script: Path,
        *arguments: object,
        restore: SnapshotId | None = None,
        every: int = 1,
        check_replicas: int = 0,
        more: Mapping[str, str] | None = None,
    ) -> list[int]:
        """One generation, until all workers have ended: their exit codes. Output goes to ``output(rank)``.

        ``more``: of the workers' environment.
        """
        from torch._C._distributed_c10d import TCPStore

        self.generation += 1
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {
            "WORLD_SIZE": self.ranks,
            "LOCAL_WORLD_SIZE": self.ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "FTRAIN_JOB": "test",
            "FTRAIN_NODE": "node-0",
            "FTRAIN_NODE_DIR": self.folder,
            "FTRAIN_GENERATION": self.generation,
            "FTRAIN_RESTORE": "" if restore is None else f"{restore.version}:{restore.generation}:{restore.slot}",
            "FTRAIN_SNAPSHOT_EVERY": every,
            "FTRAIN_CHECK_REPLICAS": check_replicas,
            **(more or {}),
        }
        environments = [
            {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
            for rank in range(self.ranks)
        ]
        return self._forker.run(script, [str(a) for a in arguments], environments, self.folder / "output")

    def output(self, rank: int) -> str:
        """What a rank of the last generation printed."""
        return (self.folder / f"output.{rank}").read_text()

    @property
    def newest(self) -> SnapshotId:
        """The newest snapshot that all ranks have sealed."""
        return self.daemon.sealed[-1]

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *error: object) -> None:
        self.agent.close()
        self.daemon.close()
