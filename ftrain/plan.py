"""The copy plan: which bytes of which tensor go where in this rank's unit, made once per structure.

A plan lists the tensors that tracked objects own, in the order in which they are found, which is the same on all
ranks; their layout; and for each chunk of 1 MiB the pieces of tensors in it. What changes with each step is laid out
first (layout.py). Tensors that turn up in a state without anybody owning them (gradients that are live, what a
``state_dict`` of the user's makes) are no part of the plan: they are the capture's *tail*, behind it.

Three kinds of tensors, by who may change them when (DESIGN 5): *lazy* ones belong to a tracked optimizer and are
copied in the background; the others are copied before commit returns, those that ``fickle`` marks at each capture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from ftrain.layout import Kind, Layout, flat_bytes, lay_out
from ftrain.looks import Faces, Numbers, Placed
from ftrain.sharded import is_sharded, local_of
from ftrain.sources import Source
from ftrain.state import TensorKey, tensor_key
from ftrain_snapshot.manifest import CHUNK_BYTES

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]

SMALL_BYTES = 64 << 10
"""A buffer below this is copied each time: to find out whether it has changed would cost more."""


@dataclass
class Owned:
    """A tensor that a tracked object calls its own; of a DTensor the local one."""

    tensor: Tensor
    name: str
    movers: set[int]
    """``id`` of the parameters at whose step it changes."""
    volatile: bool
    lazy: bool
    buffer: bool
    faces: list[Tensor] = field(default_factory=list)
    """The DTensors that it is local to."""


class Row(NamedTuple):
    """Bytes ``start`` to ``start + length`` of a tensor lie at ``offset`` of the unit."""

    tensor: int
    """Its index."""
    start: int
    offset: int
    length: int


def rows_of(index: int, start: int, offset: int, left: int) -> list[Row]:
    """Bytes of a tensor from ``start`` on, cut where chunks end."""
    rows = []
    while left:
        length = min(left, CHUNK_BYTES - offset % CHUNK_BYTES)
        rows.append(Row(index, start, offset, length))
        start, offset, left = start + length, offset + length, left - length
    return rows


def owned_by(sources: Iterable[Source]) -> dict[TensorKey, Owned]:
    """What the sources' objects own, by memory: tied tensors are one."""
    found: dict[TensorKey, Owned] = {}
    for source in sources:
        for name, tensor, parameter in source.tensors():
            local = local_of(tensor)
            key = tensor_key(local)
            owned = found.get(key)
            if owned is None:
                buffer = parameter is None and not isinstance(tensor, nn.Parameter)
                small = local.numel() * local.element_size() < SMALL_BYTES
                owned = found[key] = Owned(local, name, set(), buffer and small, False, buffer)
            if is_sharded(tensor) and not any(face is tensor for face in owned.faces):
                owned.faces.append(tensor)
            owned.movers |= {id(tensor)}
            if parameter is not None:
                owned.movers |= {id(parameter)}
                owned.volatile |= parameter.requires_grad
                owned.lazy = True
                owned.buffer = False
    return found


def view_of(flat: Tensor, *, locked: bool) -> memoryview:
    """The bytes of a flat tensor in main memory.

    numpy's view locks them: torch resizes no storage that numpy has seen, so that nobody reads freed memory. Buffers
    are resized by scripts, with ``resize_`` or ``out=``, and are copied at commit: theirs must not be locked.
    """
    if locked:
        return memoryview(flat.numpy().data)
    return memoryview((ctypes.c_ubyte * len(flat)).from_address(flat.data_ptr())).cast("B")


class Plan:
    """See the top of this file. Index i of any list here is tensor i of the layout."""

    def __init__(
        self, owned: list[Owned], others: Iterable[Tensor], shared: set[TensorKey], rank: int, world_size: int
    ) -> None:
        """``others``: tensors that stand in no snapshot, and yet make the plan void where they move."""
        self.tensors = [one.tensor for one in owned]
        self.names = [one.name for one in owned]
        keys = [tensor_key(tensor) for tensor in self.tensors]
        self.index_of = {key: index for index, key in enumerate(keys)}
        kinds = [Kind(key in shared, one.volatile) for key, one in zip(keys, owned, strict=True)]
        self.layout = lay_out(self.tensors, self.names, kinds, world_size)
        self.encoded_layout = msgspec.msgpack.encode(self.layout)
        self.logical = b""
        """What the tensors are, whatever the world, encoded; the capturer's to say."""
        self.digest = _digest(self.layout, owned)
        self.data_bytes = self.layout.region_bytes(rank)

        flats = [flat_bytes(tensor) for tensor in self.tensors]
        self.flats = flats
        """Each tensor's bytes; None: it has gaps, and is copied by way of a contiguous copy. They keep the memory
        alive, whatever becomes of the tensor."""
        self.addresses = [0 if flat is None else flat.data_ptr() for flat in flats]
        on_cpu = [flat is not None and flat.device.type == "cpu" for flat in flats]
        self.views = [
            view_of(flat, locked=not one.buffer) if here and flat is not None and len(flat) else memoryview(b"")
            for here, flat, one in zip(on_cpu, flats, owned, strict=True)
        ]
        self._counted = [(one.tensor, *one.faces) for one in owned]
        versioned = [not any(tensor.is_inference() for tensor in counted) for counted in self._counted]
        listed = set(map(id, self.tensors))
        self._placed = Placed([*self.tensors, *(tensor for tensor in others if id(tensor) not in listed)])
        self._faces = Faces((index, face) for index, one in enumerate(owned) for face in one.faces)
        sound = [flat is not None and has for flat, has in zip(flats, versioned, strict=True)]
        self.lazy = [one.lazy and good for one, good in zip(owned, sound, strict=True)]
        buffers = [one.buffer for one in owned]
        self.fickle = np.array([b or not good for b, good in zip(buffers, sound, strict=True)], bool)
        """Copied at each capture."""
        self.on_trial: dict[int, tuple[int, int | None]] = {
            index: (0, None)
            for index, (buffer, here) in enumerate(zip(buffers, on_cpu, strict=True))
            if buffer and here and versioned[index] and len(self.views[index]) >= SMALL_BYTES
        }
        """Large buffers that may turn out not to change: how many captures found them equal, and their checksum."""
        self._note_movers(owned)
        self._cut(rank)

    def _note_movers(self, owned: list[Owned]) -> None:
        """Whose steps change which tensors."""
        movers = sorted(set().union(*(one.movers for one in owned)))
        place = {mover: position for position, mover in enumerate(movers)}
        self._movers = place
        pairs = [(index, place[mover]) for index, one in enumerate(owned) for mover in one.movers]
        self._moved, self._moving = np.array(pairs, np.intp).reshape(-1, 2).T

    def _cut(self, rank: int) -> None:
        """What of which tensors each chunk of this rank consists of."""
        self.rows: list[list[Row]] = [[] for _ in range(-(-self.data_bytes // CHUNK_BYTES))]
        """The pieces of each chunk."""
        for piece in self.layout.region_pieces(rank):
            for row in rows_of(piece.index, piece.start, piece.region_offset, piece.end - piece.start):
                self.rows[row.offset // CHUNK_BYTES].append(row)
        chunks = [[chunk] * len(rows) for chunk, rows in enumerate(self.rows)]
        self.row_chunk = np.array([chunk for row in chunks for chunk in row], np.intp)
        self.row_index = np.array([row.tensor for rows in self.rows for row in rows], np.intp)
        self._last_marked, self._last_chunks = b"", np.empty(0, bool)
        self._divide()

    def look(self) -> Numbers | None:
        """What torch has counted of changes in place, tensor by tensor; None: the plan is void.

        That is where a tensor lies elsewhere, or is another one in its old place: of another shape, or transposed.

        Of fused steps the count says nothing (FACTS 7).
        """
        in_place, versions = self._placed.look()
        self._faces.add_versions(versions)
        return versions[: len(self.tensors)] if in_place and self._faces.are_same() else None

    def versions(self) -> Numbers:
        """The same count, wherever the tensors lie."""
        versions = self._placed.look()[1]
        self._faces.add_versions(versions)
        return versions[: len(self.tensors)]

    def version(self, index: int) -> int:
        """The same count of one tensor."""
        return sum(tensor._version for tensor in self._counted[index])

    def moved_by(self, stepped: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """The tensors that change when optimizers step with these parameters, given by ``id``."""
        moving = np.zeros(len(self._movers), bool)
        moving[[place for mover in stepped if (place := self._movers.get(mover)) is not None]] = True
        found: np.ndarray[tuple[int], np.dtype[np.intp]] = self._moved[moving[self._moving]]
        return found

    def chunks_of(self, marked: Flags) -> Flags:
        """The chunks that hold any of the marked tensors; the same ones are marked at most captures."""
        if (packed := marked.tobytes()) != self._last_marked:
            counts = np.bincount(self.row_chunk[marked[self.row_index]], minlength=len(self.rows))
            self._last_marked, self._last_chunks = packed, counts > 0
        return self._last_chunks

    def distrust(self, indices: Iterable[int]) -> None:
        """From now on these are copied at each capture, before commit returns: their marks do not tell."""
        for index in indices:
            self.lazy[index] = False
            self.fickle[index] = True
            self.on_trial.pop(index, None)
        self._divide()

    def _divide(self) -> None:
        self.lazy_rows = [[row for row in rows if self.lazy[row.tensor]] for rows in self.rows]
        self.eager_rows = [[row for row in rows if not self.lazy[row.tensor]] for rows in self.rows]
        self.has_eager = np.array([bool(rows) for rows in self.eager_rows], bool)

    @property
    def device(self) -> torch.device:
        """Where the state is: the first GPU that holds any of it, or the CPU."""
        return next((tensor.device for tensor in self.tensors if tensor.is_cuda), torch.device("cpu"))


def _digest(layout: Layout, owned: list[Owned]) -> int:
    """Equal on two ranks only if they divide the same replicated spaces; an optimizer that was given its parameters in
    another order has equal shapes in them perhaps, and the state of other parameters."""
    names = {id(face): one.name for one in owned for face in (one.tensor, *one.faces)}
    shared = (one for one, spec in zip(owned, layout.specs, strict=True) if spec.kind.replicated)
    movers = [sorted(names[mover] for mover in one.movers if mover in names) for one in shared]
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode((layout.digest, movers)))
