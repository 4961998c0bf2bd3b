"""A node's shared memory: three slots of one region per lane, their parity, and one page of control words.

Plain files in the node's folder, mapped shared by worker and daemon, so that each outlives the other's death
(FACTS 11a: never ``multiprocessing.shared_memory``, whose tracker unlinks them). The daemon allocates and touches;
a worker only maps. Three slots: two complete snapshots are kept while the third is written.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot import manifest
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, SnapshotIncomplete
from ftrain_snapshot.manifest import HEADER_BYTES, Header, State
from ftrain_snapshot.messages import SnapshotId
from ftrain_snapshot.placement import round_up, segment_bytes

SLOTS = 3
PAGE_BYTES = 4096
MARGIN_BYTES = 8 << 20
"""Left free on the arena's file system, for everyone else's small files."""
TOUCH_BYTES = 16 << 20
"""Pages are allocated and touched in pieces, so that whoever does it can do something else in between."""
_MADV_POPULATE_WRITE = 23


def region_path(node_dir: str | Path, slot: int, lane: int) -> Path:
    """The file of one lane in one slot."""
    return Path(node_dir) / f"slot{slot}.lane{lane}"


def parity_path(node_dir: str | Path, slot: int, lane: int) -> Path:
    """The file of the parity that a node keeps for one lane in one slot."""
    return Path(node_dir) / f"slot{slot}.parity{lane}"


def file_bytes(data_bytes: int) -> int:
    """Size of the region file that holds ``data_bytes`` of data and manifest, with a little room to grow."""
    return round_up(HEADER_BYTES + data_bytes + max(16 << 10, data_bytes >> 7), PAGE_BYTES)


def required(file_sizes: dict[int, int], segments: int, parity: int) -> int:
    """Bytes that all slots of the lanes with these region files need, their parity included."""
    parity_sizes = [parity * round_up(segment_bytes(size, segments), PAGE_BYTES) for size in file_sizes.values()]
    return SLOTS * (sum(file_sizes.values()) + sum(parity_sizes))


def available(node_dir: str | Path) -> int:
    """Bytes that the arena's file system can still give."""
    fs = os.statvfs(node_dir)
    return max(0, fs.f_bavail * fs.f_frsize - MARGIN_BYTES)


def extend(path: Path, size: int) -> int:
    """Allocate one more piece of the file towards ``size``; its size afterwards. Never shrinks it.

    Raises ArenaTooSmall (posix_fallocate says so at once, where ftruncate would end in SIGBUS; FACTS 11a).
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        have = os.fstat(fd).st_size
        if have >= size:
            return have
        piece = min(TOUCH_BYTES, size - have)
        try:
            os.posix_fallocate(fd, have, piece)
        except OSError as error:
            raise ArenaTooSmall(size - have, available(path.parent)) from error
        return have + piece
    finally:
        os.close(fd)


class Mapping:
    """One file, mapped shared and writable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.size = os.fstat(fd).st_size
            self._map = mmap.mmap(fd, self.size)
        finally:
            os.close(fd)
        self.view = memoryview(self._map)

    def touch(self, offset: int = 0, length: int | None = None) -> None:
        """Populate pages, so that the first copy does not pay for them (FACTS 1: ten times the copy)."""
        end = self.size if length is None else min(self.size, offset + length)
        for start in range(offset, end, TOUCH_BYTES):
            with suppress(OSError):  # kernels before 5.14: the first copy pays
                self._map.madvise(_MADV_POPULATE_WRITE, start, min(TOUCH_BYTES, end - start))

    def close(self) -> None:
        """Unmap, unless somebody still holds a view: then the last of them does."""
        with suppress(BufferError):
            self.view.release()
            self._map.close()


class Region:
    """A worker's (or the daemon's) view of one lane in one slot.

    ``begin``, write into ``data``, ``seal``: only then does the snapshot exist here. Killed at any point before,
    the region reads as not sealed.
    """

    def __init__(self, mapping: Mapping, slot: int, lane: int) -> None:
        self.slot = slot
        self.lane = lane
        self.mapping = mapping

    @classmethod
    def open(cls, node_dir: str | Path, slot: int, lane: int, *, touch: bool = True) -> Region:
        """Map the region that the daemon has allocated. Raises FileNotFoundError if it has not."""
        region = cls(Mapping(region_path(node_dir, slot, lane)), slot, lane)
        if touch:
            region.mapping.touch()
        return region

    @property
    def capacity(self) -> int:
        """Bytes for data and manifest."""
        return self.mapping.size - HEADER_BYTES

    @property
    def data(self) -> memoryview:
        """All bytes after the header, writable."""
        return self.mapping.view[HEADER_BYTES:]

    @property
    def page(self) -> memoryview:
        """The header page."""
        return self.mapping.view[:HEADER_BYTES]

    def unit(self, unit_bytes: int) -> memoryview:
        """The whole unit: header, data and manifest."""
        return self.mapping.view[:unit_bytes]

    def header(self) -> tuple[State, Header | None]:
        """State and header as they are now; a header that claims more than the file holds is none."""
        state, header = manifest.read_header(self.page)
        if header is not None and header.unit_bytes > self.mapping.size:
            return State.EMPTY, None
        return state, header

    def begin(self, snapshot: SnapshotId, rank: int, world_size: int) -> None:
        """From here on the region holds nothing, until it is sealed."""
        manifest.write_state(self.page, State.WRITING)
        manifest.write_header(self.page, Header(snapshot, rank, world_size, 0, 0, 0, 0))

    def seal(self, data_bytes: int, manifest_: bytes, digest: int) -> None:
        """Put the manifest after the data and mark the region complete; the state word is written last.

        Raises ValueError if it was not begun or does not fit (``capacity``).
        """
        state, begun = self.header()
        if state is not State.WRITING or begun is None:
            raise ValueError(f"slot {self.slot}, lane {self.lane}: sealed without having been begun")
        header = Header(
            begun.snapshot, begun.rank, begun.world_size, data_bytes, len(manifest_), digest,
            manifest.checksum(manifest_),
        )  # fmt: skip
        if header.unit_bytes > self.mapping.size:
            raise ValueError(f"{header.unit_bytes} bytes do not fit into a region of {self.mapping.size}")
        start = HEADER_BYTES + header.manifest_offset
        self.mapping.view[start : start + len(manifest_)] = manifest_
        manifest.write_header(self.page, header)
        manifest.write_state(self.page, State.SEALED)

    def clear(self) -> None:
        """Forget what it holds. Only for the daemon, and only while no worker of this node lives."""
        manifest.write_state(self.page, State.EMPTY)

    def read(self, snapshot: SnapshotId) -> tuple[memoryview, bytes]:
        """(data, manifest) of a sealed snapshot, in place: copy out what training will change.

        Raises SnapshotIncomplete if the region holds another one or none, ChecksumMismatch if its manifest is
        damaged. The data's own checksums were checked by the daemon before ``wait_restored`` returned.
        """
        state, header = self.header()
        if state is not State.SEALED or header is None or header.snapshot != snapshot:
            held = header.snapshot if header is not None else None
            raise SnapshotIncomplete(f"slot {self.slot}, lane {self.lane}: {snapshot} is not here, but {held}")
        start = header.manifest_offset
        manifest_ = bytes(self.data[start : start + header.manifest_bytes])
        if manifest.checksum(manifest_) != header.manifest_checksum:
            raise ChecksumMismatch(f"slot {self.slot}, lane {self.lane}: the manifest of {snapshot} is damaged")
        return self.data[: header.data_bytes], manifest_

    def refresh(self, *, touch: bool = True) -> tuple[Mapping, int] | None:
        """Map again what has grown; views taken before stay valid. The new mapping and the old size, if it has."""
        old = self.mapping
        if old.path.stat().st_size <= old.size:
            return None
        self.mapping = Mapping(old.path)
        if touch:
            self.mapping.touch(old.size // PAGE_BYTES * PAGE_BYTES)
        old.close()
        return self.mapping, old.size

    def close(self) -> None:
        """Unmap."""
        self.mapping.close()


class ControlPage:
    """The node's page of control words: the gate, written by the gate's daemon, and each lane's progress.

    Words are aligned and written whole; the gate word of two is guarded by the order of writing (slot to -1,
    ticket, slot), and read ticket, slot, ticket.
    """

    BYTES = 4096
    LANES_MAX = 48
    _TICKET, _SLOT, _PENDING, _FLOOR = 0, 1, 2, 3
    _PROGRESS, _STRIDE = 128, 8

    def __init__(self, node_dir: str | Path, *, create: bool = False) -> None:
        path = Path(node_dir) / "control"
        fresh = create and (not path.exists() or path.stat().st_size != self.BYTES)
        if fresh:
            words = [0] * (self.BYTES // 8)
            words[self._SLOT] = words[self._PENDING] = -1
            for lane in range(self.LANES_MAX):
                words[self._PROGRESS + self._STRIDE * lane] = -1
            draft = path.with_name("control.new")
            draft.write_bytes(struct.pack(f"<{len(words)}q", *words))
            draft.chmod(0o600)
            draft.rename(path)
        self._mapping = Mapping(path)
        self._words = self._mapping.view.cast("q")
        self._times = self._mapping.view.cast("d")

    def gate(self) -> tuple[int, int]:
        """(ticket, slot); slot -1: closed."""
        while True:
            ticket, slot = self._words[self._TICKET], self._words[self._SLOT]
            if ticket == self._words[self._TICKET]:
                return ticket, slot

    def pending(self) -> tuple[int, int, int]:
        """(ticket, slot, floor) of the last opening, shown or not; slot -1: its snapshot has been seen."""
        return self._words[self._TICKET], self._words[self._PENDING], self._words[self._FLOOR]

    def open_gate(self, ticket: int, slot: int, floor: int = -1) -> None:
        """Let rank 0 take ``ticket`` for ``slot``; ``floor`` is a note for the gate's own restart."""
        self._words[self._SLOT] = -1
        self._words[self._TICKET] = ticket
        self._words[self._PENDING] = -1
        self._words[self._FLOOR] = floor
        self._words[self._PENDING] = slot
        self._words[self._SLOT] = slot

    def close_gate(self, *, spent: bool = False) -> None:
        """Nobody may take a ticket. ``spent``: the last one has been used, or is void."""
        self._words[self._SLOT] = -1
        if spent:
            self._words[self._PENDING] = -1

    def progress(self, lane: int) -> tuple[int, float]:
        """(last committed step, time.time() of its commit) of a lane; step -1: none."""
        at = self._PROGRESS + self._STRIDE * lane
        return self._words[at], self._times[at + 1]

    def set_progress(self, lane: int, step: int) -> None:
        """The lane has committed ``step`` now."""
        at = self._PROGRESS + self._STRIDE * lane
        self._times[at + 1] = time.time()
        self._words[at] = step

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._times.release()
        self._mapping.close()
