"""Live tensors that outlast their generation, so that a survivor need not read its state back (docs/recovery.md).

When a generation ends, the tensors are *held* whose marks are those of the last sealed capture: trained parameters and
what optimizers keep for them, where no optimizer has begun a step since. The next generation takes them if it starts
from that very snapshot, as the same rank of as many. Nothing is believed for that reason: each is put where its bytes
are needed (an optimizer's state is handed over, a parameter is copied into the new model's), and the bytes *there* are
proved: this rank's share by the checksums that were made while it was captured, what others captured by digests of what
they have (exchange.py). What is not proved is read.

Handed over is only memory that nobody else refers to any more: a thread that the script has left behind may still
write to its old tensors. Those that are not in main memory are not held: to prove them would cost as much as to read.
The next model is made while the parameters of this one are held, in place of their gradients; nothing else is doubled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ftrain.copier import move
from ftrain.flight import checksum_with_gaps
from ftrain.layout import TensorSpec
from ftrain.plan import Row, view_of
from ftrain.together import each
from ftrain_snapshot.lane import Region
from ftrain_snapshot.manifest import CHUNK_BYTES, Header, chunk_bytes
from ftrain_snapshot.words import SnapshotId


@dataclass(frozen=True)
class Held:
    """What one rank holds of one snapshot."""

    snapshot: SnapshotId
    rank: int
    world_size: int
    layout: bytes
    """The snapshot's, encoded: the tensors' numbers are its."""
    tensors: dict[int, Tensor]

    def suits(self, restore: SnapshotId | None, rank: int, world_size: int) -> bool:
        """Whether a generation that starts from ``restore`` can use it."""
        return (restore, rank, world_size) == (self.snapshot, self.rank, self.world_size)

    def drop_shared(self) -> None:
        """Let go of those that somebody else still refers to. Called when all else of the generation is gone."""
        # Python's own object of a storage counts as one user.
        storages = {index: tensor.untyped_storage() for index, tensor in self.tensors.items()}
        ours = Counter(storage._cdata for storage in storages.values())
        for index, storage in storages.items():
            if _users(storage) > ours[storage._cdata] + 1 or storage.is_shared():
                del self.tensors[index]

    def give(self, specs: Sequence[TensorSpec]) -> dict[int, Tensor]:
        """Those that may become somebody's own as they are: they fill their memory."""
        found = self.tensors.items()
        return {i: tensor for i, tensor in found if tensor.untyped_storage().nbytes() == specs[i].size_bytes}

    def put(self, tensors: Sequence[Tensor]) -> frozenset[int]:
        """Copy to ``tensors`` what does not lie there already, and let go of all. Returns their numbers."""
        kept = frozenset(self.tensors)
        size_bytes = sum(tensor.nbytes for tensor in self.tensors.values())

        def copy(index: int) -> None:
            target, tensor = tensors[index], self.tensors[index]
            if target is not tensor:
                move(target.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.element_size())
            del self.tensors[index]

        each(copy, list(kept), size_bytes)
        return kept


def hold(tensors: Mapping[int, Tensor], specs: Sequence[TensorSpec]) -> dict[int, Tensor]:
    """The same memory as ``tensors``, in tensors that keep nothing else alive: no gradient, no graph."""
    return {
        index: torch.empty(0, dtype=tensor.dtype).set_(
            tensor.untyped_storage(), tensor.storage_offset(), specs[index].shape, specs[index].strides
        )
        for index, tensor in tensors.items()
    }


def unproved(
    rows: Iterable[Row], kept: Collection[int], flats: Sequence[Tensor], region: Region, header: Header
) -> list[Row]:
    """Those of a region's rows, which are in order, that must be read: tensors that were not kept, and where a chunk
    with the bytes of those that were has another checksum than was recorded when it was captured."""

    def look(part: tuple[int, list[Row]]) -> list[Row]:
        chunk, here = part
        mine = [row for row in here if row.tensor in kept]
        if not mine:
            return here
        bytes_ = region.chunk(chunk, chunk_bytes(header.unit_bytes, chunk))
        views = [view_of(flats[row.tensor], locked=False)[row.start : row.start + row.length] for row in mine]
        proved = checksum_with_gaps(bytes_, mine, views, chunk * CHUNK_BYTES) == region.sum(chunk)
        return [row for row in here if row.tensor not in kept] if proved else here

    chunks = [(chunk, list(part)) for chunk, part in groupby(rows, key=lambda row: row.offset // CHUNK_BYTES)]
    return [row for left in each(look, chunks, header.unit_bytes) for row in left]


def _users(storage: torch.UntypedStorage) -> int:
    """How many refer to a storage; a torch that does not say counts as many."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return 1 << 30 if count is None else int(count(storage._cdata))
