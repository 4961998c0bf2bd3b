"""The way back: from the lanes of all ranks to each rank's state, for the world size that captured it.

Bytes go from the arena straight to where they are needed, once. A module's tensors (of a DTensor the local one) are
filled in place, and ``load_state_dict`` then finds them there; everything else becomes a new tensor, which an optimizer
keeps as its own.
So nothing ever refers to the arena: training would write into the snapshot (FACTS 7). Ranges of replicated tensors
that other ranks keep come over the process group, in bounded pieces.

New tensors cost page faults, ten times the copy (FACTS 1): an optimizer's are made in huge pages (memory.py), and all
are filled by two threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ftrain.copier import address_of, move
from ftrain.layout import REGION_ORDER, Kind, Layout, Piece, TensorSpec, flat_bytes
from ftrain.memory import huge_tensors
from ftrain.plan import Row, rows_of
from ftrain.reading import part_of, read_manifest, read_tree
from ftrain.sharded import local_of
from ftrain.shards import Part
from ftrain.state import own_tensors
from ftrain_snapshot.arena import Mapping as Mapped
from ftrain_snapshot.lane import Region
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.messages import SnapshotId

PIECE_BYTES = 32 << 20
"""Most bytes of one broadcast."""
LARGE_BYTES = 1 << 20
"""An optimizer's tensors from this size on are made in huge pages."""
FILL_THREADS = 2


@dataclass(frozen=True)
class _Index:
    """Stands for a tensor while the tree is looked through."""

    value: int


def read_state(
    region: Region, homes: list[Mapped], snapshot: SnapshotId, rank: int, world_size: int, objects: Mapping[str, Any]
) -> dict[str, Any]:
    """The tree that was captured. A collective if ``world_size`` is above one.

    Modules among ``objects`` already hold their tensors' values when this returns, and the tree names the very tensors;
    ``load_state`` is still to be called. In place of DTensors there are `Part`s, whose meshes it looks up.

    Raises StateMismatch if the snapshot is of another format, rank or world size, or no state at all;
    SnapshotIncomplete, ChecksumMismatch.
    """
    header, manifest = region.read(snapshot)
    content, layout, tail = read_manifest(manifest, rank, world_size, header.data_bytes)
    specs = (*layout.specs, *reversed(tail.specs))  # a negative index counts from the end: the tail's
    numbered = [_Index(index) for index in range(len(specs))]
    tensors = _places(specs, part_of(read_tree(content.tree, numbered), "objects"), objects)
    flats = [_flat(tensor) for tensor in tensors]
    with torch.no_grad():
        source = _Source(region, homes)
        source.fill(_own_rows(layout, tail, rank), flats)
        if world_size > 1:
            for kind in REGION_ORDER:
                if kind.replicated:
                    _exchange(layout, kind, rank, source, flats)
    placed = [t if t.device.type == spec.device else t.to(spec.device) for t, spec in zip(tensors, specs, strict=True)]
    return read_tree(content.tree, placed)


def _places(specs: tuple[TensorSpec, ...], saved: Mapping[str, Any], objects: Mapping[str, Any]) -> list[Tensor]:
    """Where each tensor's bytes go: a module's own tensor, where there is one of the same kind, or a new one."""
    places: dict[int, Tensor] = {}
    kept: list[int] = []
    for name, tracked in objects.items():
        state = saved.get(name)
        if state is not None and isinstance(tracked, nn.Module):
            own = own_tensors(tracked)
            for path, index in chain(part_of(state, "state").items(), part_of(state, "buffers").items()):
                tensor = own.get(path)
                index = index.local if isinstance(index, Part) else index
                tensor = None if tensor is None else local_of(tensor)
                if isinstance(index, _Index) and tensor is not None and _fits(specs[index.value], tensor):
                    places.setdefault(index.value, tensor)
        if state is not None and isinstance(tracked, torch.optim.Optimizer):
            kept += _indices(state)
    large = [index for index in dict.fromkeys(kept) if index not in places and specs[index].size_bytes >= LARGE_BYTES]
    places |= zip(large, huge_tensors([specs[index] for index in large]), strict=True)
    return [places[index] if index in places else spec.empty() for index, spec in enumerate(specs)]


def _indices(value: Any) -> list[int]:
    if isinstance(value, _Index):
        return [value.value]
    if isinstance(value, Part):
        return _indices(value.local)
    if isinstance(value, dict):
        return [index for item in value.values() for index in _indices(item)]
    return [index for item in value for index in _indices(item)] if isinstance(value, list | tuple) else []


def _fits(spec: TensorSpec, tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and str(tensor.dtype) == f"torch.{spec.dtype}"
        and tuple(tensor.shape) == spec.shape
        and tuple(tensor.stride()) == spec.strides
        and flat_bytes(tensor) is not None
    )


def _own_rows(layout: Layout, tail: Layout, rank: int) -> list[Row]:
    """All that this rank's region holds."""
    rows: list[Row] = []
    for piece in layout.region_pieces(rank):
        rows += rows_of(piece.index, piece.start, piece.region_offset, piece.end - piece.start)
    base = layout.region_bytes(rank)
    for piece in tail.region_pieces(0):
        rows += rows_of(-1 - piece.index, piece.start, base + piece.region_offset, piece.end - piece.start)
    return rows


class _Source:
    """A region's bytes, wherever its chunks lie."""

    def __init__(self, region: Region, homes: list[Mapped]) -> None:
        self._region = region
        self._homes = [address_of(home) for home in homes]

    def fill(self, rows: list[Row], flats: list[Tensor]) -> None:
        """Copy each row to its tensor."""
        addresses = [flat.data_ptr() for flat in flats]
        chunks = 1 + rows[-1].offset // CHUNK_BYTES if rows else 0
        homes = [self._homes[self._region.home(chunk)] for chunk in range(chunks)]

        def copy(part: list[Row]) -> None:
            for row in part:
                move(addresses[row.tensor] + row.start, homes[row.offset // CHUNK_BYTES] + row.offset, row.length)

        parts = [rows[start : start + 64] for start in range(0, len(rows), 64)]
        with ThreadPoolExecutor(FILL_THREADS) as pool:
            list(pool.map(copy, parts))

    def piece(self, start: int, end: int) -> Tensor:
        """Bytes of the region, in place if they are one piece."""
        spans = [torch.frombuffer(span, dtype=torch.uint8) for span in self._region.spans(start, end)]
        return spans[0] if len(spans) == 1 else torch.cat(spans)


def _exchange(layout: Layout, kind: Kind, rank: int, source: _Source, flats: list[Tensor]) -> None:
    """Give the other ranks this one's range of a replicated space, and take theirs."""
    device = exchange_device()
    scratch = torch.empty(PIECE_BYTES, dtype=torch.uint8, device=device)
    for root in range(layout.world_size):
        start, end = layout.share(root, kind)
        base = layout.region_offset(root, kind)
        for low in range(start, end, PIECE_BYTES):
            high = min(end, low + PIECE_BYTES)
            piece = scratch[: high - low]
            if root == rank:
                mine = source.piece(base + low - start, base + high - start)
                piece = mine if device.type == "cpu" else piece.copy_(mine)
            dist.broadcast(piece, src=root)
            if root != rank:
                _scatter(layout.pieces(kind, low, high), piece, flats)


def _scatter(pieces: Iterable[Piece], source: Tensor, flats: list[Tensor]) -> None:
    for piece in pieces:
        end = piece.region_offset + piece.end - piece.start
        flats[piece.index][piece.start : piece.end].copy_(source[piece.region_offset : end])


def exchange_device() -> torch.device:
    """Where tensors are that travel over the default process group."""
    # "cpu:gloo,cuda:nccl" and gloo move CPU tensors; a plain nccl group only its GPU's.
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _flat(tensor: Tensor) -> Tensor:
    flat = flat_bytes(tensor)
    assert flat is not None
    return flat
