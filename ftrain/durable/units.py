"""A checkpoint on storage as the snapshot that it was written from: one node, with a lane for each rank that wrote it.

So what starts from the snapshot of another world in memory (ftrain/reshard) starts from a checkpoint by the same way.
A rank's data is put together from the manifest's layout; what is asked of it leads to stored tensors, each of which is
read whole, since its checksum is of all its bytes. Some are kept, for reads take a tensor piece by piece.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from functools import cached_property
from threading import Lock

import msgspec
import torch

from ftrain.durable.contents import RankContents
from ftrain.durable.parts import RankRecord
from ftrain.durable.reader import Checkpoint
from ftrain.layout import Piece, flat_bytes
from ftrain.shards import Box
from ftrain_snapshot.messages import Origin, SnapshotId
from ftrain_snapshot.read_plan import Wanted

KEPT_BYTES = 64 << 20
"""Of tensors that were read; one that is larger is kept alone."""


class CheckpointSource:
    """`ftrain.reshard.filling.Reading` over a checkpoint. Every method raises StateMismatch, StorageError.

    Several threads may read; one at a time goes to the storage.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._ranks: dict[int, _Rank] = {}
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
        flat = flat_bytes(self._tensor(rank, piece.index))
        assert flat is not None
        shift = piece.start - piece.region_offset
        return flat[start + shift : stop + shift].numpy().data

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


class _Rank:
    """One of the ranks that wrote the checkpoint."""

    def __init__(self, rank: int, world_size: int, record: RankRecord) -> None:
        self.record = record
        self.contents = RankContents(rank, world_size, record.manifest)

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
