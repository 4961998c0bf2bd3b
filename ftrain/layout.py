"""Where each tensor of a state lies among the bytes of a snapshot.

Four spaces. *Replicated* tensors are the same on every rank, laid out one after another; each rank keeps an equal
range (REFT, arXiv 2310.12670), so the job holds them once. *Private* ones are the rank's own. Each kind has a
*volatile* space, for what steps change, and a *stable* one, so that chunks that change lie apart from those that do
not: a frozen model costs nothing, and what changes is shared equally whatever is frozen. A rank's region holds its
range of the volatile replicated space, its volatile private one, and the same two of what is stable. The layout
travels in the manifest; its digest must be equal on all ranks, or the ranges would not belong together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import torch
import xxhash

ALIGNMENT_BYTES = 64


def round_up(value: int, multiple: int = ALIGNMENT_BYTES) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


class Kind(msgspec.Struct, frozen=True, array_like=True):
    """Which space a tensor belongs to."""

    replicated: bool = False
    volatile: bool = True


REGION_ORDER = (Kind(True, True), Kind(False, True), Kind(True, False), Kind(False, False))
"""The spaces as they follow each other in a region."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor."""

    name: str
    """Its path in what is tracked: ``objects.model.state.weight``."""
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, for dense tensors, whose bytes lie in memory order; else those of a contiguous one."""
    device: str
    """Device type it was on."""
    kind: Kind
    offset: int
    """In bytes, in its space."""
    size_bytes: int

    def empty(self) -> torch.Tensor:
        """A new CPU tensor of this shape, dtype and memory order."""
        return torch.empty_strided(self.shape, self.strides, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Piece:
    """Bytes ``start`` to ``end`` of one tensor lie at ``region_offset``."""

    index: int
    start: int
    end: int
    region_offset: int


class Layout(msgspec.Struct, frozen=True, dict=True):
    """All tensors of one rank's state."""

    specs: tuple[TensorSpec, ...]
    world_size: int

    @cached_property
    def _members(self) -> dict[Kind, list[int]]:
        members: dict[Kind, list[int]] = {kind: [] for kind in REGION_ORDER}
        for index, spec in enumerate(self.specs):
            if spec.size_bytes:
                members[spec.kind].append(index)
        return members

    @cached_property
    def _space_bytes(self) -> dict[Kind, int]:
        last = {kind: self.specs[members[-1]] if members else None for kind, members in self._members.items()}
        return {kind: 0 if spec is None else spec.offset + spec.size_bytes for kind, spec in last.items()}

    @cached_property
    def digest(self) -> int:
        """Equal on two ranks exactly if they divide the same replicated spaces."""
        facts = [(s.name, s.dtype, s.shape, s.strides, s.kind, s.offset) for s in self.specs if s.kind.replicated]
        return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode((self.world_size, facts)))

    def share(self, rank: int, kind: Kind) -> tuple[int, int]:
        """The range of a space that ``rank`` keeps: all of a private one, an equal part of a replicated one."""
        total = self._space_bytes[kind]
        if not kind.replicated:
            return 0, total
        cuts = [min(total, round_up(total * r // self.world_size)) for r in (rank, rank + 1)]
        return cuts[0], total if rank + 1 == self.world_size else cuts[1]

    def region_offset(self, rank: int, kind: Kind) -> int:
        """Where the share of a space begins in the region of ``rank``."""
        before = REGION_ORDER[: REGION_ORDER.index(kind)]
        return sum(round_up(end - start) for start, end in (self.share(rank, k) for k in before))

    def region_bytes(self, rank: int) -> int:
        """Bytes of data in the region of ``rank``, padded."""
        return sum(round_up(end - start) for start, end in (self.share(rank, k) for k in REGION_ORDER))

    def pieces(self, kind: Kind, start: int, end: int, base: int = 0) -> Iterator[Piece]:
        """The parts of tensors in ``start`` to ``end`` of a space; their offsets count from ``base`` at ``start``."""
        order = self._members[kind]
        first = max(0, bisect_right(order, start, key=lambda index: self.specs[index].offset) - 1)
        for index in order[first:]:
            spec = self.specs[index]
            if spec.offset >= end:
                return
            low, high = max(start, spec.offset), min(end, spec.offset + spec.size_bytes)
            if low < high:
                yield Piece(index, low - spec.offset, high - spec.offset, base + low - start)

    def region_pieces(self, rank: int) -> Iterator[Piece]:
        """All that the region of ``rank`` holds, in order."""
        for kind in REGION_ORDER:
            yield from self.pieces(kind, *self.share(rank, kind), self.region_offset(rank, kind))


def lay_out(tensors: Sequence[torch.Tensor], names: Sequence[str], kinds: Sequence[Kind], world_size: int) -> Layout:
    """Give each tensor its place: one after another in its space, aligned."""
    ends = dict.fromkeys(REGION_ORDER, 0)
    specs = []
    for tensor, name, kind in zip(tensors, names, kinds, strict=True):
        size = tensor.numel() * tensor.element_size()
        specs.append(
            TensorSpec(
                name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _kept_strides(tensor),
                tensor.device.type, kind, ends[kind], size,
            )
        )  # fmt: skip
        ends[kind] += round_up(size)
    return Layout(tuple(specs), world_size)


def is_dense(tensor: torch.Tensor) -> bool:
    """Its elements fill one piece of memory without gaps or overlaps, in whatever order of dimensions."""
    return tensor.is_contiguous() or fills(tensor.shape, tensor.stride())


def fills(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Elements at these strides fill one piece of memory without gaps or overlaps."""
    if len(shape) != len(strides):
        return False
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor's memory as a flat uint8 view; None if it has none (gaps, overlaps, a lazy conjugation)."""
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg() or not is_dense(tensor):
        return None
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def materialized_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same for a tensor that `flat_bytes` cannot view: a contiguous copy's."""
    flat = flat_bytes(tensor.detach().resolve_conj().resolve_neg().contiguous())
    assert flat is not None
    return flat


def _kept_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    if is_dense(tensor):
        return tuple(tensor.stride())
    strides, step = [], 1
    for size in reversed(tensor.shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
