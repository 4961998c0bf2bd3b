"""What workers and agents call: one connection to the node's daemon, a request and its answer at a time.

Notices of a worker (``captured``, ``sealed``, ``skip``, ``skipped``) are one-way. If the daemon is away they are lost
without an error: a restarted daemon finds what was sealed by scanning the headers, and training must not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from socket import socket
from threading import Lock
from types import TracebackType
from typing import Literal, TypeVar

import msgspec

from ftrain_snapshot import messages as m
from ftrain_snapshot.errors import ArenaTooSmall, DaemonLost, ProtocolError, SnapshotError, SnapshotIncomplete
from ftrain_snapshot.frames import connect_unix, decode, recv_frame, recv_into, send_frame
from ftrain_snapshot.inventory import Inventory
from ftrain_snapshot.membership import Membership, Peer
from ftrain_snapshot.read_plan import READ_BYTES_MAX, PlannedRead, Wanted, read_requests
from ftrain_snapshot.status import DaemonStatus
from ftrain_snapshot.words import SnapshotId

SOCKET_NAME = "daemon.sock"
READ_TIMEOUT_SECONDS = 30.0
"""For one such answer: sources that do not answer are given up one after the other."""
READS_AHEAD = 4
"""Requests for bytes that are under way at once."""
TOUCH_BYTES_PER_SECOND = 100e6
"""A slow machine's rate of touching fresh memory: what ``reserve`` adds to its timeout."""
_AWAY_SECONDS = 0.05
"""Between tries while a daemon is being restarted: nothing tells when it listens again."""
_REPLY: msgspec.msgpack.Decoder[m.Reply] = msgspec.msgpack.Decoder(m.Reply)


T = TypeVar("T", bound=m.Reply)


def _expect(reply: m.Reply, kind: type[T]) -> T:
    """The reply, if it is of that kind. Raises SnapshotError with the daemon's reason if it refused."""
    if isinstance(reply, m.Refused):
        raise SnapshotError(reply.reason)
    if not isinstance(reply, kind):
        raise ProtocolError(f"the daemon answered {type(reply).__name__}, where {kind.__name__} was due")
    return reply


class DaemonClient:
    """One connection to the daemon of this node; calls from several threads take turns.

    Every call raises DaemonLost if the daemon does not listen or closes the line, and TimeoutError if it does not
    answer in time; the next call connects anew. An agent's open connection is what keeps the daemon alive.
    """

    def __init__(
        self, node_dir: str | Path, *, role: Literal["agent", "worker"], timeout_seconds: float = 10.0
    ) -> None:
        self._path = Path(node_dir) / SOCKET_NAME
        self._role = role
        self._timeout_seconds = timeout_seconds
        self._sock: socket | None = None
        self._lock = Lock()
        with suppress(DaemonLost, TimeoutError):  # a daemon that is just being restarted: the next call connects
            self._connected()

    # The agent's calls.

    def configure(self, membership: Membership) -> None:
        """Serve this generation. Returns at once; what must be rebuilt is rebuilt in the daemon meanwhile."""
        _expect(self._ask(m.Configure(membership)), m.Done)

    def inventory(self, *, urgent: bool = False) -> Inventory:
        """What this node holds, from the headers as they are now; exact once its workers are dead. ``urgent``: the job
        waits for it."""
        return _expect(self._ask(m.GetInventory(urgent)), m.InventoryReply).inventory

    def status(self) -> DaemonStatus:
        """The daemon's report; of the job's levels only the gate's daemon knows."""
        return _expect(self._ask(m.GetStatus()), m.StatusReply).status

    def pin(self, version: int) -> None:
        """This version, or the first safe one after it, is to be kept for storage: the gate's daemon does so."""
        _expect(self._ask(m.Pin(version)), m.Done)

    def unpin(self, snapshot: SnapshotId) -> None:
        """``snapshot`` is on storage, or will not be: at the gate its slot may be used again."""
        _expect(self._ask(m.Unpin(snapshot)), m.Done)

    def shutdown(self) -> None:
        """Have the daemon remove its files and end. That it has ended already is no error."""
        with suppress(DaemonLost):
            self._ask(m.Shutdown())
        self.close()

    # A worker's calls.

    def reserve(self, lane: int, data_bytes: int) -> None:
        """Have homes and tables of ``lane`` allocated and touched, for ``data_bytes`` of data and manifest together.

        Raises ArenaTooSmall with what is needed and what there is. A lane that grew: ``Lane.refresh``.
        """
        more = data_bytes * 5 / TOUCH_BYTES_PER_SECOND
        reply = self._ask(m.Reserve(lane, data_bytes), self._timeout_seconds + more)
        if isinstance(reply, m.TooSmall):
            raise ArenaTooSmall(reply.needed_bytes, reply.available_bytes)
        _expect(reply, m.Done)

    def wait_restored(self, generation: int, timeout_seconds: float) -> None:
        """Wait until the snapshot that ``generation`` starts from is in this node's regions, verified.

        Raises SnapshotIncomplete if it cannot be, TimeoutError after ``timeout_seconds``.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"generation {generation} was not restored within {timeout_seconds:g} s")
            try:
                reply = self._ask(m.WaitRestored(generation), left)
                break
            except DaemonLost:  # being restarted: it takes the rebuilding up again
                time.sleep(min(_AWAY_SECONDS, left))  # nobody tells when it is back
        if isinstance(reply, m.Incomplete):
            raise SnapshotIncomplete(reply.reason)
        _expect(reply, m.Done)

    def captured(self, lane: int, snapshot: SnapshotId) -> None:
        """More of this lane's chunks of ``snapshot`` are published: they may be sent already. One-way."""
        self._tell(m.Captured(lane, snapshot))

    def sealed(self, lane: int, snapshot: SnapshotId) -> None:
        """This lane's region of ``snapshot`` is sealed. One-way."""
        self._tell(m.Sealed(lane, snapshot))

    def skip(self, snapshot: SnapshotId) -> None:
        """This rank could not capture ``snapshot``, which others may: the job gives it up. One-way."""
        self._tell(m.Skip(snapshot))

    def skipped(self, version: int) -> None:
        """The gate was closed when ``version`` was due. One-way, from rank 0."""
        self._tell(m.Skipped(version))

    # Anybody's calls about what is stored.

    def verify(self, timeout_seconds: float = 60.0) -> m.VerifyReport:
        """Have all that this node stores read and compared with its checksums, and repaired where it is wrong."""
        return _expect(self._ask(m.Verify(), timeout_seconds), m.VerifyReport)

    def units(self, snapshot: SnapshotId) -> tuple[m.UnitInfo, ...]:
        """What ``snapshot`` consists of, in order of position and lane. Raises SnapshotIncomplete if it is not here."""
        return _expect(self._whole(m.GetUnits(snapshot)), m.Units).units

    def descriptor(self, snapshot: SnapshotId, position: int, lane: int) -> m.UnitInfo:
        """One of its units. Raises SnapshotIncomplete if it is not known here."""
        for unit in self.units(snapshot):
            if (unit.position, unit.lane) == (position, lane):
                return unit
        raise SnapshotIncomplete(f"snapshot {snapshot.version} has no position {position}, lane {lane}")

    def read(self, snapshot: SnapshotId, position: int, lane: int, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a unit, verified: from here, from its node, or decoded from others.

        Whoever reads more than fits into memory asks for it in turn. Raises SnapshotIncomplete if they cannot be had.
        """
        out = bytearray()
        for begin in range(start, stop, READS_AHEAD * READ_BYTES_MAX):
            piece = bytearray(min(stop - begin, READS_AHEAD * READ_BYTES_MAX))
            self.read_many(snapshot, [Wanted(position, lane, begin, memoryview(piece))])
            out += piece
        return bytes(out)

    def read_many(self, snapshot: SnapshotId, wanted: Iterable[Wanted], *, patience_seconds: float = 0.0) -> None:
        """Read into the buffers of all that is ``wanted``, verified; requests of 4 MiB, several of them under way.

        Small ranges of one unit share a request while they follow one another: give them in order of position, lane
        and start. ``patience_seconds``: how long to wait, again and again, for a daemon that is being restarted; what
        was under way is then read anew. Raises SnapshotIncomplete if any bytes cannot be had: some buffers may be
        filled by then.
        """
        left = dict(enumerate(read_requests(snapshot, wanted)))
        deadline = time.monotonic() + patience_seconds
        while left:
            before = len(left)
            try:
                self._read(left)
            except DaemonLost:
                if len(left) < before:
                    deadline = time.monotonic() + patience_seconds
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_AWAY_SECONDS)  # as above

    def _read(self, left: dict[int, PlannedRead]) -> None:
        """Have all that is ``left`` answered; what is done is taken out."""
        with self._line(max(self._timeout_seconds, READ_TIMEOUT_SECONDS)) as sock:
            to_ask = iter(sorted(left))
            for number in islice(to_ask, READS_AHEAD):
                self._ask_for(sock, number, left[number])
            while left:
                reply = decode(_REPLY, recv_frame(sock))
                if isinstance(reply, m.Incomplete):
                    raise SnapshotIncomplete(reply.reason)
                answer = _expect(reply, m.Bytes)
                read = left.get(answer.number)
                if read is None or answer.length != sum(len(view) for view in read.into):
                    raise ProtocolError(f"the daemon answered with {answer.length} bytes that nobody asked for")
                recv_into(sock, read.into)
                del left[answer.number]
                for number in islice(to_ask, 1):
                    self._ask_for(sock, number, left[number])

    def _ask_for(self, sock: socket, number: int, read: PlannedRead) -> None:
        request = m.Read(read.snapshot, read.position, read.lane, tuple(read.ranges), number)
        send_frame(sock, msgspec.msgpack.encode(request))

    def _whole(self, request: m.Request) -> m.Reply:
        reply = self._ask(request, max(self._timeout_seconds, READ_TIMEOUT_SECONDS))
        if isinstance(reply, m.Incomplete):
            raise SnapshotIncomplete(reply.reason)
        return reply

    def probe(
        self,
        node: str,
        peers: Sequence[Peer],
        *,
        burst_bytes: int = 0,
        count: int = 5,
        timeout_seconds: float = 1.0,
        bursts: int = 1,
    ) -> tuple[m.LinkFigure, ...]:
        """Measure the links from this node, called ``node``, to these peers; one figure each, in their order.

        Takes ``timeout_seconds`` at most for the round trips, of which there are ``count`` to each, all at once; then,
        if ``burst_bytes`` are to be sent for the bandwidth, ``bursts`` times, at most as long again for each peer, one
        after the other.
        """
        request = m.Probe(node, tuple(peers), count, burst_bytes, timeout_seconds, bursts)
        wait_seconds = self._timeout_seconds + timeout_seconds * (1 + len(peers) * bool(burst_bytes))
        return _expect(self._ask(request, wait_seconds), m.Probed).figures

    # The line.

    def close(self) -> None:
        """Close the connection; a later call would open another."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __enter__(self) -> DaemonClient:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _connected(self) -> socket:
        if self._sock is None:
            try:
                self._sock = connect_unix(self._path, self._timeout_seconds)
                send_frame(self._sock, msgspec.msgpack.encode(m.ClientHello(self._role)))
            except TimeoutError:
                self.close()
                raise
            except OSError as error:
                self.close()
                raise DaemonLost(f"the snapshot daemon at {self._path} does not listen: {error}") from error
        return self._sock

    def _tell(self, notice: m.Request) -> None:
        body = msgspec.msgpack.encode(notice)
        with self._lock:
            for _ in range(2):  # the first may only find out that the daemon was restarted
                with suppress(OSError):  # DaemonLost and TimeoutError included
                    sock = self._connected()
                    sock.settimeout(self._timeout_seconds)
                    send_frame(sock, body)
                    return
                self.close()

    def _ask(self, request: m.Request, timeout_seconds: float | None = None) -> m.Reply:
        """One request and its answer."""
        with self._line(self._timeout_seconds if timeout_seconds is None else timeout_seconds) as sock:
            send_frame(sock, msgspec.msgpack.encode(request))
            return decode(_REPLY, recv_frame(sock))

    @contextmanager
    def _line(self, timeout_seconds: float) -> Iterator[socket]:
        """The connection, for one caller; after any failure it is closed, so answers never mix."""
        with self._lock:
            try:
                sock = self._connected()
                sock.settimeout(timeout_seconds)
                yield sock
            except TimeoutError as error:
                self.close()
                raise TimeoutError(f"the snapshot daemon at {self._path} did not answer in time") from error
            except (OSError, EOFError, ProtocolError) as error:
                self.close()
                raise DaemonLost(f"lost the snapshot daemon at {self._path}: {error}") from error
            except BaseException:
                self.close()
                raise
