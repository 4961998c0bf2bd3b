"""The worker's line to its agent: small typed messages on a unix socket, and a progress word in shared memory.

A worker that may stay when its generation ends has a second line, on which the agent speaks too (rejoin.py).
The agent may be restarted under a running worker, so a send that finds the line cut connects once more; a
worker never fails because its agent is away. This module never imports torch: the agent reads it too.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

import msgspec

from ftrain_snapshot.frames import connect_unix, send_frame

COMMUNICATION = re.compile(
    r"gloo|nccl|connectFullMesh|Connection (closed|reset|refused)|Broken pipe|Socket Timeout"
    r"|TCPStore|c10d|rendezvous|Timed out waiting|Application timeout|process ?group",
    re.IGNORECASE,
)
"""What errors of communication say: gloo's are plain RuntimeErrors, so that only the text tells."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First on every connection: who is speaking."""

    rank: int
    local_rank: int
    pid: int
    generation: int


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """The rank's state is that of ``version`` (None: there was nothing to restore)."""

    version: int | None
    time: float
    read_bytes: int = 0
    """Of its tensors: so much was read."""
    kept_bytes: int = 0
    """So much the rank still held of its former generation."""


class FirstStep(msgspec.Struct, frozen=True, tag="first_step"):
    """The first step of this generation was committed."""

    step: int
    time: float


class Misfit(msgspec.Struct, frozen=True):
    """The script cannot use the ranks that there are (`MeshImpossible`, `BatchTooSmall`)."""

    ranks: int
    """It needs so many,"""
    multiple: bool
    """or a multiple of it,"""
    reason: str
    """For what mesh or batch, in words."""
    at_most: bool = False
    """or so many and fewer."""

    def is_met_by(self, ranks: int) -> bool:
        """Whether it could use so many."""
        if self.at_most:
            return ranks <= self.ranks
        return ranks % self.ranks == 0 if self.multiple else ranks == self.ranks


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The training function raised."""

    step: int | None
    error: str
    """Exception type and message, one line."""
    traceback: str
    communication: bool
    """It looks like a lost peer (gloo, nccl or store error): likely a consequence, not the cause."""
    not_finite: bool = False
    """The loss was not finite twice in a row (`LossNotFinite`): ``newest_version`` is to be demoted."""
    newest_version: int | None = None
    """The newest snapshot that this rank has captured, or was restored from; told with ``not_finite`` only."""
    misfit: Misfit | None = None
    """There are too many or too few ranks for the script's device mesh."""


class OutOfMemory(msgspec.Struct, frozen=True, tag="out_of_memory"):
    """The arena cannot hold the job's snapshots."""

    needed_bytes: int
    available_bytes: int
    goes_on: bool = False
    """The rank trains all the same: there is a snapshot to fall back to, of another world or of a smaller state."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The training function returned: what happens to the process from here on is no training fault."""


class Halted(msgspec.Struct, frozen=True, tag="halted"):
    """The rank waits to be ended after ``step``, whose snapshot it has sealed; or it could not, and goes on."""

    step: int
    sealed: bool
    time: float


class Certified(msgspec.Struct, frozen=True, tag="certified", kw_only=True):
    """From rank 0: the state that was re-sharded from another world's snapshot is proved (reshard/certificate.py)."""

    version: int
    """The snapshot."""
    findings: tuple[str, ...] = ()
    """What is wrong with it; then nothing is proved, and no step is taken."""
    ranks: int
    """Of this world."""
    tensors: int
    """Logical tensors, each of whose elements is held as often as its layout says."""
    compared_bytes: int
    """Of replicas, over all ranks: all that several ranks hold."""
    counters: int
    """Parameters whose optimizer steps are equal on all their ranks."""
    samplers: dict[str, int]
    """Positions, equal on all ranks, in global batches."""
    samples: dict[str, int]
    """How many samples were trained on by then; the ranks' next batches together are the next global batch."""
    seconds: float


class Undescribed(msgspec.Struct, frozen=True, tag="undescribed"):
    """From now on this rank's snapshots are for as many ranks as there are, and for no others."""

    reason: str


class Described(msgspec.Struct, frozen=True, tag="described"):
    """From this snapshot on other numbers of ranks can take over what this rank captures, as far as it can tell."""

    version: int


class Unlike(msgspec.Struct, frozen=True, tag="unlike"):
    """This rank has laid out what all ranks hold the same in another order than rank 0: no snapshot counts."""


class Stays(msgspec.Struct, frozen=True, tag="stays"):
    """This process can stay when its generation ends: this line is where to tell it so, by `Leave`."""


class Waits(msgspec.Struct, frozen=True, tag="waits"):
    """On that line: this process has left its generation, or never had one, and waits for an `Assignment`."""


class StoreReady(msgspec.Struct, frozen=True, tag="store_ready"):
    """From the store process of a generation: it listens."""

    generation: int
    port: int


class ReplicaDigest(msgspec.Struct, frozen=True, array_like=True):
    """The digest of what a rank shares with others (`ftrain.replicas`)."""

    replicas: str
    """What, and among whom: the same on all ranks that share it."""
    size: int
    """How many ranks do; 0: who does is not known, but for that they have tensors of the same shapes."""
    digest: int
    """xxh3-64 of the bytes."""


class Replicas(msgspec.Struct, frozen=True, tag="replicas"):
    """What must be equal on several ranks, as it is on this one after ``step``."""

    step: int
    digests: tuple[ReplicaDigest, ...]


LinkMessage = (
    Hello
    | Restored
    | FirstStep
    | Failed
    | OutOfMemory
    | Finished
    | Halted
    | Certified
    | Undescribed
    | Described
    | Unlike
    | Stays
    | Waits
    | StoreReady
    | Replicas
)


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """To a worker that stays: a generation is being formed, leave all that are older."""

    generation: int


class Assignment(msgspec.Struct, frozen=True, tag="assignment"):
    """To a process that waits: its place."""

    generation: int
    env: dict[str, str]
    """What a process that was started for this place would have got."""
    stdout_path: str
    """Opened for appending; folders are made."""
    stderr_path: str


ToWorker = Leave | Assignment


class AgentLink:
    """The worker's end. Every call is quick, bounded, and never raises: training goes on without an agent."""

    def __init__(self, path: str | Path, hello: Hello, *, timeout_seconds: float = 2.0) -> None:
        self._path = Path(path)
        self._hello = hello
        self._timeout_seconds = timeout_seconds
        self._socket: socket.socket | None = None

    def send(self, message: LinkMessage) -> bool:
        """Send one message, connecting (again) if need be; False: the agent is away and it is lost."""
        for _ in range(2):  # a line that was cut shows only when it is written to
            line = self._connected()
            if line is None:
                return False
            try:
                send_frame(line, msgspec.msgpack.encode(message))
                return True
            except OSError:
                self.close()
        return False

    def connect(self) -> bool:
        """Say hello now rather than with the first message; False: the agent is away."""
        return self._connected() is not None

    def _connected(self) -> socket.socket | None:
        if self._socket is None:
            try:
                self._socket = connect_unix(self._path, self._timeout_seconds)
                send_frame(self._socket, msgspec.msgpack.encode(self._hello))
            except OSError:
                self.close()
        return self._socket

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
