"""A node's shared memory: for each lane three homes of its bytes and three slots that refer to them; parity; one page
of control words.

Plain files in the node's folder, mapped shared by worker and daemon, so that each outlives the other's death
(FACTS 11a: never ``multiprocessing.shared_memory``, whose tracker unlinks them). The daemon allocates and touches;
a worker only maps. Three slots: two complete snapshots are kept while the third is written.

Fresh pages cost ten times a copy. Where a node is rebuilt, its homes are *outlined* first: files of their full length
without memory, of which that of the rebuilt chunks comes with their bytes. Who reserves the lane has the rest filled.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ftrain_snapshot import manifest
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, SnapshotIncomplete
from ftrain_snapshot.manifest import CHUNK_BYTES, HEADER_BYTES, Header, State, chunk_count
from ftrain_snapshot.messages import SnapshotId
from ftrain_snapshot.placement import round_up

SLOTS = HOMES = 3
PAGE_BYTES = 4096
MARGIN_BYTES = 8 << 20
"""Left free on the arena's file system, for everyone else's small files."""
TOUCH_BYTES = 16 << 20
"""Pages are allocated and touched in pieces, so that whoever does it can do something else in between."""
_MADV_POPULATE_WRITE = 23
# Words of a table: of its header page, then a record of two for each chunk: checksum, and home counted from the
# slot's own (so that a fresh file, all zeros, is right).
_PUBLISHED, _COPIED = 2, 3
_RECORDS = HEADER_BYTES // 8
_RECORD_BYTES = 16


def home_path(node_dir: str | Path, home: int, lane: int) -> Path:
    """The file of one home of a lane's unit."""
    return Path(node_dir) / f"slot{home}.lane{lane}"


def table_path(node_dir: str | Path, slot: int, lane: int) -> Path:
    """The file of one slot's header and chunk table for a lane."""
    return Path(node_dir) / f"slot{slot}.table{lane}"


def parity_path(node_dir: str | Path, home: int, lane: int, rotation: int) -> Path:
    """The file of one home of the parity that a node keeps for a lane in one rotation."""
    return Path(node_dir) / f"slot{home}.parity{lane}.{rotation}"


def home_bytes(unit_bytes: int) -> int:
    """Size of a home for such a unit, with a little room to grow."""
    return round_up(unit_bytes + max(16 << 10, unit_bytes >> 8), PAGE_BYTES)


def table_bytes(home_bytes_: int) -> int:
    """Size of the table for such a home."""
    return round_up(HEADER_BYTES + chunk_count(home_bytes_) * _RECORD_BYTES, PAGE_BYTES)


def parity_bytes(home_bytes_: int, data: int) -> int:
    """Size of the parity, in one rotation, of such homes on ``data`` nodes."""
    return round_up(min(home_bytes_, -(-chunk_count(home_bytes_) // data) * CHUNK_BYTES), PAGE_BYTES)


def required(homes: dict[int, int], data: int, parity: int) -> int:
    """Bytes that lanes with homes of these sizes need, tables and parity included."""
    each = [size + table_bytes(size) + parity * parity_bytes(size, data) for size in homes.values()]
    return SLOTS * sum(each)


def available(node_dir: str | Path) -> int:
    """Bytes that the arena's file system can still give."""
    fs = os.statvfs(node_dir)
    return max(0, fs.f_bavail * fs.f_frsize - MARGIN_BYTES)


def allocated(path: Path) -> int:
    """Bytes of the file that have memory."""
    stat = path.stat()
    return min(stat.st_size, stat.st_blocks * 512)


def outline(path: Path, size: int) -> None:
    """Make the file at least ``size`` long, without memory. Never shrinks it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def fill(path: Path) -> Iterator[None]:
    """Give memory to all of an outlined file, a piece at a time; its bytes stay. Raises ArenaTooSmall."""
    size = path.stat().st_size
    for start in range(0, size, TOUCH_BYTES):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, start, min(TOUCH_BYTES, size - start))
        except OSError as error:
            raise ArenaTooSmall(size - start, available(path.parent)) from error
        finally:
            os.close(fd)
        yield


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

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes by way of the file. Raises ArenaTooSmall, where a store into an outlined file ends in SIGBUS.

        Pages that have no memory yet get it filled: they need not be cleared or mapped first (0.6 s per GB of 1.0).
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            while data:
                written = os.pwrite(fd, data, offset)
                offset, data = offset + written, data[written:]
        except OSError as error:
            raise ArenaTooSmall(len(data), available(self.path.parent)) from error
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap, unless somebody still holds a view: then the last of them does."""
        with suppress(BufferError):
            self.view.release()
            self._map.close()


class Region:
    """One lane in one slot: a header page, and for each chunk of the unit its checksum and its home.

    A worker begins it, places and records chunks, publishes them in order, and seals it: only then does the snapshot
    exist here. Killed at any point before, the region reads as not sealed.
    """

    def __init__(self, lane: Lane, slot: int, mapping: Mapping) -> None:
        self.slot = slot
        self._lane = lane
        self._map(mapping)

    def _map(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.page = mapping.view[:HEADER_BYTES]
        self._words: memoryview[int] = mapping.view.cast("Q")

    # What it says.

    def header(self) -> tuple[State, Header | None]:
        """State and header as they are now; a header that claims more than there is room for is none."""
        state, header = manifest.read_header(self.page)
        if header is not None and header.unit_bytes > self._lane.capacity:
            return State.EMPTY, None
        return state, header

    @property
    def published(self) -> int:
        """How many leading chunks are complete, with their records."""
        return self._words[_PUBLISHED]

    @property
    def copied_bytes(self) -> int:
        """What the capture copied; the rest was unchanged since its reference."""
        return self._words[_COPIED]

    def home(self, chunk: int) -> int:
        """Which home the chunk lies in."""
        return (self._words[_RECORDS + 2 * chunk + 1] + self.slot) % HOMES

    def sum(self, chunk: int) -> int:
        """The chunk's checksum, as recorded."""
        return self._words[_RECORDS + 2 * chunk]

    def sums(self, chunks: int) -> bytes:
        """The checksums of the leading ``chunks``, packed."""
        return self._words[_RECORDS : _RECORDS + 2 * chunks : 2].tobytes()

    def chunk(self, chunk: int, length: int = CHUNK_BYTES) -> memoryview:
        """The chunk's bytes, in place; ``length`` is shorter for the unit's last one."""
        start, home = chunk * CHUNK_BYTES, self._lane.homes[self.home(chunk)]
        return home.view[start : start + length]

    def spans(self, start: int, end: int) -> Iterator[memoryview]:
        """Bytes ``start`` to ``end`` of the unit, in place: one piece where neighbours share a home."""
        while start < end:
            home, stop = self.home(start // CHUNK_BYTES), start
            while stop < end and self.home(stop // CHUNK_BYTES) == home:
                stop = min(end, (stop // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield self._lane.homes[home].view[start:stop]
            start = stop

    def read(self, snapshot: SnapshotId) -> tuple[Header, bytes]:
        """(header, manifest) of a sealed snapshot; its data is in ``spans``: copy out what training will change.

        Raises SnapshotIncomplete if the region holds another one or none, ChecksumMismatch if its manifest is
        damaged. The data's own checksums were checked by the daemon before ``wait_restored`` returned.
        """
        state, header = self.header()
        if state is not State.SEALED or header is None or header.snapshot != snapshot:
            held = header.snapshot if header is not None else None
            raise SnapshotIncomplete(f"slot {self.slot}, lane {self._lane.lane}: {snapshot} is not here, but {held}")
        start = header.manifest_offset
        manifest_ = b"".join(self.spans(start, start + header.manifest_bytes))
        if manifest.checksum(manifest_) != header.manifest_checksum:
            raise ChecksumMismatch(f"slot {self.slot}, lane {self._lane.lane}: the manifest of {snapshot} is damaged")
        return header, manifest_

    # Filling it.

    def begin(self, header: Header) -> None:
        """From here on the region holds nothing, until it is sealed. Raises ValueError if there is no room."""
        if header.unit_bytes > self._lane.capacity:
            raise ValueError(f"{header.unit_bytes} bytes do not fit into a lane of {self._lane.capacity}")
        manifest.write_state(self.page, State.WRITING)
        self._words[_PUBLISHED] = self._words[_COPIED] = 0
        manifest.write_header(self.page, header)

    def place(self, chunk: int) -> int:
        """The home for new bytes of this chunk: one that no other slot uses, its own last one if it may be."""
        index = _RECORDS + 2 * chunk + 1
        used = {region.home(chunk) for region in self._lane.regions if region is not self}
        for turn in (self._words[index] % HOMES, *range(HOMES)):
            home: int = (turn + self.slot) % HOMES
            if home not in used:
                self._words[index] = turn
                return home
        raise AssertionError("three homes, two other slots")

    def record(self, chunk: int, checksum_: int) -> None:
        """The bytes of a placed chunk are there."""
        self._words[_RECORDS + 2 * chunk] = checksum_

    def keep(self, chunk: int, reference: Region) -> None:
        """The chunk's bytes are those of ``reference``."""
        at = _RECORDS + 2 * chunk
        self._words[at] = reference.sum(chunk)
        self._words[at + 1] = (reference.home(chunk) - self.slot) % HOMES

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset`` of the unit, into chunks that have been placed."""
        done = 0
        for span in self.spans(offset, offset + len(data)):
            span[:] = data[done : done + len(span)]
            done += len(span)

    def publish(self, chunks: int, copied_bytes: int) -> None:
        """The leading ``chunks`` are complete; ``copied_bytes``: of all that were copied so far."""
        self._words[_COPIED] = copied_bytes
        self._words[_PUBLISHED] = chunks

    def seal(self) -> None:
        """All is there; the state word is written last. Raises ValueError if it was not begun, or is not whole."""
        state, header = self.header()
        if state is not State.WRITING or header is None or self.published != header.chunks:
            raise ValueError(f"slot {self.slot}, lane {self._lane.lane}: sealed before it was whole")
        manifest.write_state(self.page, State.SEALED)

    def clear(self) -> None:
        """Forget what it holds. Only for the daemon, and only while no worker of this node lives."""
        manifest.write_state(self.page, State.EMPTY)

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self.page.release()
        self.mapping.close()


class Lane:
    """One lane's memory, as worker and daemon map it: three homes of the unit, three regions that say what is where.

    The same chunk of several slots lies in one home as long as it does not change: it is captured, coded and sent
    once. Of three homes there is always one that the two other slots do not use.
    """

    def __init__(self, node_dir: str | Path, lane: int) -> None:
        """Map what the daemon has allocated. Raises FileNotFoundError if it has not, ValueError if it is empty."""
        self.node_dir = Path(node_dir)
        self.lane = lane
        self.homes = [Mapping(home_path(node_dir, home, lane)) for home in range(HOMES)]
        self.regions = [Region(self, slot, Mapping(table_path(node_dir, slot, lane))) for slot in range(SLOTS)]

    @property
    def capacity(self) -> int:
        """The longest unit there is room for, in bytes."""
        records = min((region.mapping.size - HEADER_BYTES) // _RECORD_BYTES for region in self.regions)
        return min(records * CHUNK_BYTES, *(home.size for home in self.homes))

    def touch(self) -> None:
        """Populate this process's pages, so that the first copy does not pay for them."""
        for mapping in (*self.homes, *(region.mapping for region in self.regions)):
            mapping.touch()

    def refresh(self) -> list[tuple[Mapping, int]]:
        """Map again what has grown; views taken before stay valid. The new mappings, each with its old size."""
        grown = []
        for home, old in enumerate(self.homes):
            if (new := _larger(old)) is not None:
                self.homes[home] = new
                grown.append((new, old.size))
        for region in self.regions:
            if (new := _larger(region.mapping)) is not None:
                grown.append((new, region.mapping.size))
                old = region.mapping
                region._words.release()
                region.page.release()
                region._map(new)
                old.close()
        return grown

    def close(self) -> None:
        """Unmap."""
        for region in self.regions:
            region.close()
        for home in self.homes:
            home.close()


def _larger(old: Mapping) -> Mapping | None:
    return Mapping(old.path) if old.path.stat().st_size > old.size else None


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
