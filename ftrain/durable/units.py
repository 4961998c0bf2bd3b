"""A checkpoint on storage as the snapshot that it was written from: one node, with a lane for each rank that wrote it.

So what starts from the snapshot of another world in memory (ftrain/reshard) starts from a checkpoint by the same way.
A rank's data is put together from the manifest's layout; what is asked of it leads to stored tensors. Of long ones only
what is wanted is read, in blocks (slices.py). Others are read whole, since their checksum is of all their bytes; some
are kept, for reads take a tensor piece by piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from math import prod
from threading import Lock
from typing import NamedTuple

import msgspec
import torch

from ftrain.durable.contents import RankContents
from ftrain.durable.parts import RankRecord, place_of
from ftrain.durable.reader import Checkpoint
from ftrain.durable.slices import Slices
from ftrain.layout import Piece, TensorSpec, flat_bytes
from ftrain.logical.state import contiguous_strides
from ftrain.shards import Box
from ftrain_snapshot.membership import Origin
from ftrain_snapshot.read_plan import Wanted
from ftrain_snapshot.words import SnapshotId

KEPT_BYTES = 32 << 20
"""Of tensors that were read, and of blocks; a tensor that is larger is kept alone."""


class CheckpointSource:
    """`ftrain.reshard.filling.Reading` over a checkpoint. Every method raises StateMismatch, StorageError.

    Several threads may read; one at a time goes to the storage.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._ranks: dict[int, _Rank] = {}
        self._slices = Slices(checkpoint, KEPT_BYTES)
        self._tensors: OrderedDict[tuple[str, tuple[Box, ...]], torch.Tensor] = OrderedDict()
        self._lock = Lock()

    @property
    def origin(self) -> Origin:
        """What it is, in the words for a snapshot of another world."""
        index = self._checkpoint.index
        return Origin(SnapshotId(index.version, 0, 0), 1, 0, (), "none", (), 0)

    @property
    def lanes(self) -> int:
        """How many ranks wrote it."""
        return self._checkpoint.index.world_size

    def manifest(self, position: int, lane: int) -> bytes:
        """As `Source.manifest`."""
        return self._rank(lane).contents.manifest

    def read(self, position: int, lane: int, start: int, stop: int) -> memoryview:
        """As `Source.read`; what is returned stays valid."""
        rank = self._rank(lane)
        pieces = rank.between(start, stop)
        if len(pieces) == 1 and pieces[0].region_offset <= start and _end(pieces[0]) >= stop:
            return self._bytes(rank, pieces[0], start, stop)
        data = bytearray(stop - start)  # between tensors there is padding
        for piece in pieces:
            low, high = max(start, piece.region_offset), min(stop, _end(piece))
            data[low - start : high - start] = self._bytes(rank, piece, low, high)
        return memoryview(data)

    def read_into(self, wanted: Iterable[Wanted]) -> None:
        """As `NodeSource.read_into`."""
        for want in wanted:
            want.into[:] = self.read(want.position, want.lane, want.start, want.start + len(want.into))

    def _rank(self, rank: int) -> _Rank:
        with self._lock:
            if rank not in self._ranks:
                record = self._checkpoint.record(rank)
                found = self._ranks[rank] = _Rank(rank, self.lanes, record)
                self._checkpoint.check_fits(record, rank, len(found.contents.specs))
            return self._ranks[rank]

    def _bytes(self, rank: _Rank, piece: Piece, start: int, stop: int) -> memoryview:
        """These bytes of a rank's data, which lie in this piece."""
        shift = piece.start - piece.region_offset
        if (stored := self._stored(rank, piece.index)) is not None:
            return self._in_blocks(stored, start + shift, stop + shift)
        flat = flat_bytes(self._tensor(rank, piece.index))
        assert flat is not None
        return flat[start + shift : stop + shift].numpy().data

    def _stored(self, rank: _Rank, index: int) -> list[Stored] | None:
        """Where the bytes of one of its tensors are; None: they are to be had as a whole only."""
        if index not in rank.stored:
            found = stored_of(rank.contents.specs[index], rank.record.keys[index], rank.record.boxes.get(index))
            is_long = found is not None and all(self._slices.has(each.place, each.strides) for each in found)
            rank.stored[index] = found if is_long else None
        return rank.stored[index]

    def _in_blocks(self, stored: list[Stored], start: int, stop: int) -> memoryview:
        data = bytearray(stop - start)
        with self._lock:
            for each in stored:
                low, high = max(start, each.start), min(stop, each.stop)
                if low < high:
                    into = memoryview(data)[low - start : high - start]
                    self._slices.read(each.place, each.stop - each.start, low - each.start, into)
        return memoryview(data)

    def _tensor(self, rank: _Rank, index: int) -> torch.Tensor:
        spec = msgspec.structs.replace(rank.contents.specs[index], device="cpu")
        key, boxes = rank.record.keys[index], rank.record.boxes.get(index)
        with self._lock:
            found = self._tensors.pop((key, boxes or ()), None)
            if found is None:
                stored = self._checkpoint
                found = stored.tensor(key, spec) if boxes is None else stored.part(key, spec, boxes)
            self._tensors[key, boxes or ()] = found
            while len(self._tensors) > 1 and sum(each.nbytes for each in self._tensors.values()) > KEPT_BYTES:
                self._tensors.popitem(last=False)
        return found


class Stored(NamedTuple):
    """Bytes ``start`` to ``stop`` of a tensor, in its order in memory, are those of an item."""

    start: int
    stop: int
    place: str
    strides: tuple[int, ...]
    """That the item must have."""


def stored_of(spec: TensorSpec, key: str, boxes: tuple[Box, ...] | None) -> list[Stored] | None:
    """In order; None: the boxes are no stretches of the tensor's memory, one behind another."""
    if boxes is None:
        return [Stored(0, spec.size_bytes, key, spec.strides)]
    if len(boxes) == 1 and boxes[0].sizes == spec.shape:
        return [Stored(0, spec.size_bytes, place_of(key, boxes[0].offsets), spec.strides)]
    if spec.strides != contiguous_strides(spec.shape) or any(box.sizes[1:] != spec.shape[1:] for box in boxes):
        return None
    found, done = [], 0
    row_bytes = prod(spec.shape[1:]) * getattr(torch, spec.dtype).itemsize
    for box in sorted(boxes, key=lambda box: box.starts):
        start, stop = box.starts[0] * row_bytes, (box.starts[0] + box.sizes[0]) * row_bytes
        if start != done:
            return None
        found.append(Stored(start, stop, place_of(key, box.offsets), contiguous_strides(box.sizes)))
        done = stop
    return found if done == spec.size_bytes else None


class _Rank:
    """One of the ranks that wrote the checkpoint."""

    def __init__(self, rank: int, world_size: int, record: RankRecord) -> None:
        self.record = record
        self.contents = RankContents(rank, world_size, record.manifest)
        self.stored: dict[int, list[Stored] | None] = {}
        """Of its tensors, by index."""

    @cached_property
    def _pieces(self) -> list[Piece]:
        """All that its data holds, in order; their indices are those of ``contents.specs``."""
        return list(self.contents.pieces())

    def between(self, start: int, stop: int) -> list[Piece]:
        """Those that have bytes there."""
        first = max(0, bisect_right(self._pieces, start, key=lambda piece: piece.region_offset) - 1)
        found = []
        for piece in self._pieces[first:]:
            if piece.region_offset >= stop:
                break
            if _end(piece) > start:
                found.append(piece)
        return found


def _end(piece: Piece) -> int:
    return piece.region_offset + piece.end - piece.start
