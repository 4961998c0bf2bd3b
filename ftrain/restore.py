"""The way back: from the lanes of all ranks to each rank's state, for the world size that captured it.

Bytes go from the arena straight to where they are needed, once. A module's tensors (of a DTensor the local one), and
parameters that only an optimizer has, are filled in place, and ``load_state_dict`` then finds them there; everything
else becomes a new tensor, which an optimizer keeps as its own. So nothing ever refers to the arena: training would
write into the snapshot (FACTS 7). Ranges of replicated tensors that other ranks keep come over the process group
(exchange.py). What a survivor still holds of the snapshot is proved, and not read (live.py).

New tensors cost page faults, ten times the copy (FACTS 1): an optimizer's are made in huge pages (memory.py), and all
are filled by two threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ftrain.copier import address_of, move
from ftrain.exchange import exchange
from ftrain.layout import Layout, TensorSpec, flat_bytes
from ftrain.live import Held, unproved
from ftrain.memory import huge_tensors
from ftrain.plan import Row, rows_of
from ftrain.reading import part_of, read_manifest, read_refusal, read_tree
from ftrain.sharded import local_of
from ftrain.shards import Part
from ftrain.state import own_tensors, parameters_of
from ftrain.together import each
from ftrain_snapshot.arena import Mapping as Mapped
from ftrain_snapshot.lane import Region
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.words import SnapshotId

LARGE_BYTES = 1 << 20
"""An optimizer's tensors from this size on are made in huge pages."""


@dataclass(frozen=True)
class _Index:
    """Stands for a tensor while the tree is looked through."""

    value: int


class Restored(NamedTuple):
    """What one rank captured."""

    tree: dict[str, Any]
    read_bytes: int
    """Of its tensors: from the arena, and from other ranks."""
    kept_bytes: int
    """The rest, which it still held."""
    unit_bytes: int
    """The whole unit's length."""
    refusal: str | None
    """Why no other world can take the state over; None: it was described."""


def read_state(
    region: Region,
    homes: list[Mapped],
    snapshot: SnapshotId,
    rank: int,
    world_size: int,
    objects: Mapping[str, Any],
    held: Held | None = None,
) -> Restored:
    """The tree that was captured. A collective if ``world_size`` is above one.

    Modules among ``objects`` already hold their tensors' values when this returns, and the tree names the very tensors;
    ``load_state`` is still to be called. In place of DTensors there are `Part`s, whose meshes it looks up.
    ``held``, of this snapshot, is used up: its tensors are in the tree, or free.

    Raises StateMismatch if the snapshot is of another format, rank or world size, or no state at all;
    SnapshotIncomplete, ChecksumMismatch.
    """
    header, manifest = region.read(snapshot)
    content, layout, tail = read_manifest(manifest, rank, world_size, header.data_bytes)
    specs = (*layout.specs, *reversed(tail.specs))  # a negative index counts from the end: the tail's
    numbered = [_Index(index) for index in range(len(specs))]
    saved = part_of(read_tree(content.tree, numbered), "objects")
    if held is not None and held.layout != bytes(content.layout):
        held = None
    tensors = _places(specs, saved, objects, {} if held is None else held.give(specs))
    flats = [_flat(tensor) for tensor in tensors]
    rows = _own_rows(layout, tail, rank)
    with torch.no_grad():
        kept = frozenset[int]() if held is None else held.put(tensors)
        if kept:
            rows = unproved(rows, kept, flats, region, header)
        source = _Source(region, homes)
        source.fill(rows, flats)
        read_bytes = sum(row.length for row in rows)
        if world_size > 1:
            read_bytes += exchange(layout, rank, source.piece, flats, kept)
    placed = [t if t.device.type == spec.device else t.to(spec.device) for t, spec in zip(tensors, specs, strict=True)]
    kept_bytes = max(0, sum(spec.size_bytes for spec in specs) - read_bytes) if kept else 0
    tree = read_tree(content.tree, placed)
    return Restored(tree, read_bytes, kept_bytes, header.unit_bytes, read_refusal(content))


def _places(
    specs: tuple[TensorSpec, ...], saved: Mapping[str, Any], objects: Mapping[str, Any], given: Mapping[int, Tensor]
) -> list[Tensor]:
    """Where each tensor's bytes go: a module's own tensor, where there is one of the same kind, or one that is
    ``given``, or a new one."""
    places: dict[int, Tensor] = {}
    kept: list[int] = []

    def fill(own: Mapping[Any, Tensor], values: Iterable[tuple[Any, Any]]) -> None:
        for path, index in values:
            tensor = own.get(path)
            index = index.local if isinstance(index, Part) else index
            tensor = None if tensor is None else local_of(tensor)
            if isinstance(index, _Index) and tensor is not None and _fits(specs[index.value], tensor):
                places.setdefault(index.value, tensor)

    for name, tracked in objects.items():
        state = saved.get(name)
        if state is not None and isinstance(tracked, nn.Module):
            fill(own_tensors(tracked), chain(part_of(state, "state").items(), part_of(state, "buffers").items()))
        if state is not None and isinstance(tracked, torch.optim.Optimizer):
            if "params" in state:
                fill(dict(enumerate(parameters_of(tracked))), part_of(state, "params").items())
            kept += _indices(state)
    places = {**given, **places}
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
        each(copy, parts, sum(row.length for row in rows))

    def piece(self, start: int, end: int) -> Tensor:
        """Bytes of the region, in place if they are one piece."""
        spans = [torch.frombuffer(span, dtype=torch.uint8) for span in self._region.spans(start, end)]
        return spans[0] if len(spans) == 1 else torch.cat(spans)


def _flat(tensor: Tensor) -> Tensor:
    flat = flat_bytes(tensor)
    assert flat is not None
    return flat
