"""Sends this node's lanes to the holders of their parity, while they are being captured.

Chunks that lie where the reference's lie have not changed, and are not sent. A lane's description goes behind its
chunks, in the same order: whoever has it has all that this node sends unasked. Checksums are the worker's, from the
lane's table; the bytes are not looked at here.
"""

from __future__ import annotations

from collections.abc import Callable

from ftrain_snapshot.lane import Region
from ftrain_snapshot.loop import Task, Work
from ftrain_snapshot.manifest import Header, UnitDescriptor, chunk_bytes
from ftrain_snapshot.node import Node
from ftrain_snapshot.wire import Chunk, Describe
from ftrain_snapshot.words import SnapshotId

SLICE_CHUNKS = 64
"""Chunks to queue before others get their turn (under a millisecond)."""
_NOTHING = memoryview(b"")


class Stream:
    """A lane of this node on its way to the holders of its parity."""

    def __init__(self, lane: int, header: Header, region: Region, reference: Region | None) -> None:
        self.lane = lane
        self.header = header
        self.unit_bytes = header.unit_bytes
        self.region = region
        self.reference = reference
        """Chunks that lie where its chunks lie need not be sent."""
        self.next = 0
        """The first chunk that has not been dealt with."""
        self.sent_bytes = 0
        self.busy = False
        self.unit: UnitDescriptor | None = None
        """Once it is sealed."""

    @property
    def snapshot(self) -> SnapshotId:
        """Of which snapshot."""
        return self.header.snapshot

    def is_kept(self, chunk: int) -> bool:
        """Whether the chunk is the reference's."""
        return self.reference is not None and self.reference.home(chunk) == self.region.home(chunk)


class Streams:
    """The lanes of one node, in one generation."""

    def __init__(
        self,
        node: Node,
        is_open: Callable[[SnapshotId], bool],
        described: Callable[[Stream, UnitDescriptor], None],
    ) -> None:
        """``is_open``: whether a snapshot may be streamed; ``described``: a lane is sealed, and all of it queued."""
        self.taken = 0
        """Snapshots begun in this generation."""
        self._newest_taken = -1
        self._loop, self._store, self._group, self._links = node.loop, node.store, node.group, node.links
        self._generation, self._lanes = node.membership.generation, node.membership.lanes
        self._is_open, self._described, self._begin_snapshot = is_open, described, node.begin_snapshot
        rotations = self._group.data_rotations(node.position)
        self._ways = [(rotation, self._group.parity_members(rotation)) for rotation in rotations]
        """For chunks in turn: their rotation, and who holds its parity."""
        self._streams: dict[int, Stream] = {}
        self._tasks: list[Task] = []

    def close(self) -> None:
        """The generation is over."""
        for task in self._tasks:
            task.cancel()

    def adopt(self) -> None:
        """Describe what is sealed already, without sending it: this daemon was restarted, and who lacks any asks."""
        found = self._sealed_here()
        self._newest_taken = max((header.snapshot.version for _, header in found), default=-1)
        for lane, header in found:
            stream = self._stream(lane, header)
            if stream is not None:
                stream.next = header.chunks
                self._finish(stream)

    def scan(self) -> None:
        """Find lanes that were sealed without a word."""
        for lane, header in self._sealed_here():
            self.progress(lane, header.snapshot)

    def _sealed_here(self) -> list[tuple[int, Header]]:
        found = [
            (lane, h) for lane, _, h in self._store.lanes.scan(self._lanes) if h.snapshot.generation == self._generation
        ]
        sealed = [(lane, h) for lane, h in found if self._store.lanes.sealed(lane, h.snapshot)]
        return sorted(sealed, key=lambda item: item[1].snapshot)

    def progress(self, lane: int, snapshot: SnapshotId) -> None:
        """Send what is published by now; repeated or stale notices do nothing."""
        _, header = self._store.lanes.header(snapshot.slot, lane)
        if header is None or header.snapshot != snapshot:
            return
        stream = self._stream(lane, header)
        if stream is not None and not stream.busy and stream.unit is None:
            self._tasks = [task for task in self._tasks if not task.done]
            self._tasks.append(self._loop.spawn(self._push(stream)))

    def describe_to(self, position: int) -> None:
        """Tell a member that is connected anew what there is."""
        for stream in self._streams.values():
            if stream.unit is not None:
                self._links[position].send_bulk(Describe(stream.unit), _NOTHING)

    def _stream(self, lane: int, header: Header) -> Stream | None:
        """The lane's stream of this snapshot; None if there is or was a newer one, or it may not be streamed."""
        snapshot, known = header.snapshot, self._streams.get(lane)
        if known is not None and known.snapshot >= snapshot:
            return known if known.snapshot == snapshot else None
        region = self._store.lanes.region(snapshot.slot, lane)
        if region is None or not self._is_open(snapshot):
            return None
        if snapshot.version > self._newest_taken:
            self._newest_taken = snapshot.version
            self.taken += 1
            self._begin_snapshot(snapshot.version)
        known_reference = header.reference.slot != snapshot.slot and self._store.lanes.sealed(lane, header.reference)
        reference = self._store.lanes.region(header.reference.slot, lane) if known_reference else None
        stream = self._streams[lane] = Stream(lane, header, region, reference)
        return stream

    def _push(self, stream: Stream) -> Work:
        stream.busy = True
        chunks = stream.header.chunks
        while self._is_current(stream) and stream.next < (published := min(stream.region.published, chunks)):
            for chunk in range(stream.next, min(stream.next + SLICE_CHUNKS, published)):
                stream.next = chunk + 1
                if not stream.is_kept(chunk):
                    self._send(stream, chunk)
            if stream.next < published:
                yield
        stream.busy = False
        if self._is_current(stream):
            self._finish(stream)

    def _send(self, stream: Stream, chunk: int) -> None:
        stripe, turn = divmod(chunk, len(self._ways))
        rotation, holders = self._ways[turn]
        body = stream.region.chunk(chunk, chunk_bytes(stream.unit_bytes, chunk))
        head = Chunk(stream.snapshot, stream.lane, rotation, stripe, stream.region.sum(chunk), 0)
        for holder in holders:
            if (link := self._links.get(holder)) is not None:
                link.send_bulk(head, body)
                stream.sent_bytes += len(body)

    def _is_current(self, stream: Stream) -> bool:
        return self._streams.get(stream.lane) is stream and self._is_open(stream.snapshot)

    def _finish(self, stream: Stream) -> None:
        """If the lane is sealed, and all of it queued: say what it is."""
        unit = self._store.describe(stream.lane, stream.snapshot)
        if unit is None or stream.next < unit.header.chunks:
            return
        stream.unit = unit
        for member in self._group.members:
            if (link := self._links.get(member)) is not None:
                link.send_bulk(Describe(unit), _NOTHING)
        self._described(stream, unit)
