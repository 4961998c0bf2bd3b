"""One lane's memory: three homes of its bytes, and three slots that say for each chunk in which home theirs lies.

A slot's table is a header page (manifest.py), then a record for each chunk of the unit. Workers write them, the daemon
reads them; where a node is rebuilt, the daemon writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftrain_snapshot import manifest
from ftrain_snapshot.arena import HOMES, RECORD_BYTES, SLOTS, Mapping, home_path, table_path
from ftrain_snapshot.errors import ChecksumMismatch, SnapshotIncomplete
from ftrain_snapshot.manifest import CHUNK_BYTES, HEADER_BYTES, Header, State
from ftrain_snapshot.words import SnapshotId

# Words of a table: of its header page, then a record of two for each chunk: checksum, and home counted from the
# slot's own (so that a fresh file, all zeros, is right).
_PUBLISHED, _COPIED = 2, 3
_RECORDS = HEADER_BYTES // 8


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

    def mend(self, chunk: int, checksum_: int, data: memoryview) -> None:
        """Write a chunk's bytes where they were, unless another slot keeps other ones there. Raises ArenaTooSmall."""
        others = [other for other in self._lane.regions if other is not self]
        if any(other.home(chunk) == self.home(chunk) and other.sum(chunk) != checksum_ for other in others):
            self.place(chunk)
        self._lane.homes[self.home(chunk)].write(chunk * CHUNK_BYTES, data)
        self.record(chunk, checksum_)

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
        records = min((region.mapping.size - HEADER_BYTES) // RECORD_BYTES for region in self.regions)
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
