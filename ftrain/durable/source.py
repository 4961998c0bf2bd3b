"""Where bytes come from: the units of one snapshot, on this node and on others, checked before use.

Who writes checkpoints reads them, and who starts from the snapshot of another world (ftrain/reshard).

Bytes of this node are read where they lie; everything else, and what is damaged here, is asked of the node's daemon,
which fetches or decodes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Protocol

from ftrain_snapshot.errors import ChecksumMismatch, SnapshotError, SnapshotIncomplete
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import CHUNK_BYTES, State, checksum, chunk_bytes
from ftrain_snapshot.messages import UnitInfo
from ftrain_snapshot.read_plan import Wanted
from ftrain_snapshot.words import SnapshotId

READ_BYTES = 4 << 20
"""Most bytes read at once; the daemon's own limit for one answer."""
PATIENCE_SECONDS = 30.0
"""A daemon that is being restarted is back in a second or two."""


class Source(Protocol):
    """The units of one snapshot. Every method raises a SnapshotError or TimeoutError where bytes cannot be had."""

    def manifest(self, position: int, lane: int) -> bytes:
        """What the worker wrote behind its data."""

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes | bytearray | memoryview:
        """Bytes ``start`` to ``stop`` of the data, proved right; valid until the next call. At most READ_BYTES."""


class LocalUnits:
    """The lanes of one node folder, as they lie in shared memory. Several threads may read."""

    def __init__(self, node_dir: str | Path, snapshot: SnapshotId) -> None:
        self._node_dir = node_dir
        self._snapshot = snapshot
        self._lanes: dict[int, Lane] = {}
        self._lock = Lock()
        self._proved: set[tuple[int, int]] = set()

    def manifest(self, lane: int) -> bytes:
        """Raises SnapshotIncomplete, ChecksumMismatch."""
        return self._open(lane).regions[self._snapshot.slot].read(self._snapshot)[1]

    def read(self, lane: int, start: int, stop: int) -> bytes:
        """A copy, since the slot may be taken while it is looked at. Raises SnapshotIncomplete, ChecksumMismatch."""
        region = self._open(lane).regions[self._snapshot.slot]
        unit = self._sealed_bytes(lane)
        pieces = []
        for number in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
            chunk = bytes(region.chunk(number, chunk_bytes(unit, number)))
            expected = region.sum(number)
            if checksum(chunk) != expected:
                self._sealed_bytes(lane)  # another snapshot's by now? Then that is the reason
                raise ChecksumMismatch(f"lane {lane}: chunk {number} of {self._snapshot} is damaged")
            offset = number * CHUNK_BYTES
            pieces.append(chunk[max(0, start - offset) : stop - offset])
        self._sealed_bytes(lane)
        return b"".join(pieces)

    def view(self, lane: int, start: int, stop: int) -> memoryview | bytes:
        """The same without a copy, where that is one piece: for who knows that the slot is kept.

        A chunk is proved once. Raises SnapshotIncomplete, ChecksumMismatch.
        """
        region = self._open(lane).regions[self._snapshot.slot]
        unit = self._sealed_bytes(lane)
        if not 0 <= start <= stop <= unit:
            raise SnapshotIncomplete(f"lane {lane}: bytes {start} to {stop} are not in its {unit}")
        for number in range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES)):
            if (lane, number) not in self._proved:
                if checksum(region.chunk(number, chunk_bytes(unit, number))) != region.sum(number):
                    raise ChecksumMismatch(f"lane {lane}: chunk {number} of {self._snapshot} is damaged")
                self._proved.add((lane, number))
        pieces = list(region.spans(start, stop))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _sealed_bytes(self, lane: int) -> int:
        """The unit's length, if it is still this snapshot's."""
        state, header = self._open(lane).regions[self._snapshot.slot].header()
        if state is not State.SEALED or header is None or header.snapshot != self._snapshot:
            raise SnapshotIncomplete(f"lane {lane}: {self._snapshot} is not in its slot any more")
        return header.unit_bytes

    def _open(self, lane: int) -> Lane:
        with self._lock:
            if lane not in self._lanes:
                try:
                    self._lanes[lane] = Lane(self._node_dir, lane)
                except (OSError, ValueError) as error:
                    raise SnapshotIncomplete(f"lane {lane}: {error}") from error
            return self._lanes[lane]


class Daemon(Protocol):
    """The part of ``DaemonClient`` that is needed here."""

    def descriptor(self, snapshot: SnapshotId, position: int, lane: int) -> UnitInfo:
        """Where things are in any node's unit."""

    def read(self, snapshot: SnapshotId, position: int, lane: int, start: int, stop: int) -> bytes:
        """Verified bytes of any node's unit, decoded where they are lost."""

    def read_many(self, snapshot: SnapshotId, wanted: Iterable[Wanted], *, patience_seconds: float = 0.0) -> None:
        """The same into buffers, several requests under way."""


class NodeSource:
    """What a worker or writer reads: this node's own memory, the rest through its daemon."""

    def __init__(
        self, node_dir: str | Path, position: int, snapshot: SnapshotId, daemon: Daemon, *, kept: bool = False
    ) -> None:
        """``position``: this node's when the snapshot was captured; -1: it holds nothing of it. ``kept``: the slot is
        not used again while this reads, so that what lies here need not be copied."""
        self._local = LocalUnits(node_dir, snapshot)
        self._position, self._snapshot, self._daemon, self._kept = position, snapshot, daemon, kept

    def manifest(self, position: int, lane: int) -> bytes:
        """As `Source.manifest`."""
        if position == self._position:
            with suppress(SnapshotError):  # then others have it, or can compute it
                return self._local.manifest(lane)
        unit = self._daemon.descriptor(self._snapshot, position, lane)
        end = unit.manifest_offset + unit.manifest_bytes
        return self._daemon.read(self._snapshot, position, lane, unit.manifest_offset, end)

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes | memoryview:
        """As `Source.read`."""
        if position == self._position:
            with suppress(SnapshotError):
                return (self._local.view if self._kept else self._local.read)(lane, start, stop)
        return self._daemon.read(self._snapshot, position, lane, start, stop)

    def read_into(self, wanted: Iterable[Wanted]) -> None:
        """Bytes of other nodes, proved right, to where they are wanted. Raises as `Source.read`."""
        self._daemon.read_many(self._snapshot, wanted, patience_seconds=PATIENCE_SECONDS)


class FoldersSource:
    """The same over the folders of several nodes of this machine, by position: the stand-in of tests."""

    def __init__(self, node_dirs: Mapping[int, str | Path], snapshot: SnapshotId) -> None:
        self._nodes = {position: LocalUnits(path, snapshot) for position, path in node_dirs.items()}

    def manifest(self, position: int, lane: int) -> bytes:
        """As `Source.manifest`."""
        return self._nodes[position].manifest(lane)

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes:
        """As `Source.read`."""
        return self._nodes[position].read(lane, start, stop)

    def read_into(self, wanted: Iterable[Wanted]) -> None:
        """As `NodeSource.read_into`."""
        for want in wanted:
            want.into[:] = self.read(want.position, want.lane, want.start, want.start + len(want.into))
