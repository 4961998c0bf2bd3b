"""A rank's state into its region of a slot: the copy plan, and the copying.

The plan (which bytes of which tensor go where) is made when the structure of the state changes and kept while every
tensor stays where it is, which is the rule (FACTS 7). A capture is then one pass over flat byte views, straight into
pages that are mapped and touched, and a small manifest with layout and python values behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import torch

from ftrain.layout import Layout, Piece, flat_bytes, lay_out, materialized_bytes
from ftrain.state import Collected, TensorKey, collect

FORMAT = 1
"""Version of the manifest's format."""


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """What a region's bytes mean."""

    format: int
    rank: int
    version: int
    layout: msgspec.Raw
    """A `Layout`; encoded once per plan."""
    tree: Any
    """Python values and indices of tensors, packed by `ftrain.encoding`."""


@dataclass
class CopyPlan:
    """Made once per structure: where every byte of this rank goes."""

    keys: list[TensorKey]
    layout: Layout
    encoded_layout: bytes
    region_bytes: int
    sources: list[torch.Tensor]
    """Flat views of the pieces; each pairs with the place of the same index."""
    places: list[tuple[int, int]]
    """Start and end of each piece in the region."""
    scattered: list[Piece]
    """Pieces of tensors that have no flat memory: copied by way of a contiguous one."""


class Slot(Protocol):
    """The part of a region that is needed here."""

    slot: int

    @property
    def data(self) -> memoryview:
        """All bytes after the header."""


class Capturer:
    """Captures one rank's state. ``replicated`` tells which tensors all ranks hold the same."""

    def __init__(self, rank: int, world_size: int, replicated: Callable[[], set[TensorKey]]) -> None:
        self._rank = rank
        self._world_size = world_size
        self._replicated = replicated
        self._plan: CopyPlan | None = None
        self._targets: dict[int, tuple[CopyPlan, Slot, torch.Tensor, list[torch.Tensor]]] = {}

    def collect(self, tree: Mapping[str, Any]) -> tuple[CopyPlan, Collected]:
        """Walk the state; the plan is the last one if nothing has moved. Raises NotTrackable."""
        collected = collect(tree)
        if self._plan is None or self._plan.keys != collected.keys:
            collected = collect(tree, names=True)
            self._plan = self._make_plan(collected)
        return self._plan, collected

    def manifest(self, version: int, plan: CopyPlan, collected: Collected) -> bytes:
        """What goes behind the data."""
        layout = msgspec.Raw(plan.encoded_layout)
        return msgspec.msgpack.encode(Manifest(FORMAT, self._rank, version, layout, collected.tree))

    def copy(self, plan: CopyPlan, collected: Collected, slot: Slot) -> None:
        """Copy all bytes of this rank; returns when they are there."""
        whole, targets = self._destinations(plan, slot)
        with torch.no_grad():
            if targets:
                torch._foreach_copy_(targets, plan.sources)
            for piece in plan.scattered:
                source = materialized_bytes(collected.tensors[piece.index])[piece.start : piece.end]
                whole[piece.region_offset : piece.region_offset + len(source)].copy_(source)

    def forget(self) -> None:
        """Drop the plan and all views: of tensors that are going away, of regions that are mapped anew."""
        self._plan = None
        self._targets.clear()

    def _destinations(self, plan: CopyPlan, slot: Slot) -> tuple[torch.Tensor, list[torch.Tensor]]:
        cached = self._targets.get(slot.slot)
        if cached is None or cached[0] is not plan or cached[1] is not slot:
            whole = torch.frombuffer(slot.data, dtype=torch.uint8)
            cached = (plan, slot, whole, [whole[start:end] for start, end in plan.places])
            self._targets[slot.slot] = cached
        return cached[2], cached[3]

    def _make_plan(self, collected: Collected) -> CopyPlan:
        shared = self._replicated() if self._world_size > 1 else set()
        replicated = [key in shared for key in collected.keys]
        layout = lay_out(collected.tensors, collected.names, replicated, self._world_size)
        plan = CopyPlan(
            collected.keys, layout, msgspec.msgpack.encode(layout), layout.region_bytes(self._rank), [], [], []
        )
        for piece in layout.region_pieces(self._rank):
            flat = flat_bytes(collected.tensors[piece.index])
            if flat is None:
                plan.scattered.append(piece)
            else:
                plan.sources.append(flat[piece.start : piece.end])
                plan.places.append((piece.region_offset, piece.region_offset + piece.end - piece.start))
        return plan
