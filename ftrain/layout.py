"""Where each tensor of a state lies among the bytes of a snapshot.

Two spaces. *Replicated*: tensors that are the same on every rank, laid out one after another; each rank keeps an
equal range of that space (REFT, arXiv 2310.12670), so the job holds them once. *Private*: the rank's own tensors.
A rank's region holds its range of the replicated space, then its private space. The layout travels in the
manifest; its digest must be equal on all ranks, or the ranges would not belong together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import msgspec
import torch
import xxhash

ALIGNMENT_BYTES = 64


def round_up(value: int, multiple: int = ALIGNMENT_BYTES) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


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
    replicated: bool
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
    def _replicated(self) -> list[int]:
        return [index for index, spec in enumerate(self.specs) if spec.replicated and spec.size_bytes]

    @cached_property
    def replicated_bytes(self) -> int:
        """Size of the replicated space."""
        return max((spec.offset + spec.size_bytes for spec in self.specs if spec.replicated), default=0)

    @cached_property
    def private_bytes(self) -> int:
        """Size of the private space."""
        return max((spec.offset + spec.size_bytes for spec in self.specs if not spec.replicated), default=0)

    @cached_property
    def digest(self) -> int:
        """Equal on two ranks exactly if they divide the same replicated space."""
        facts = [(s.name, s.dtype, s.shape, s.strides, s.offset) for s in self.specs if s.replicated]
        return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode((self.world_size, facts)))

    def share(self, rank: int) -> tuple[int, int]:
        """The range of the replicated space that ``rank`` keeps."""
        total = self.replicated_bytes
        cuts = [min(total, round_up(total * r // self.world_size)) for r in (rank, rank + 1)]
        return cuts[0], total if rank + 1 == self.world_size else cuts[1]

    def private_offset(self, rank: int) -> int:
        """Where the private space begins in the region of ``rank``."""
        start, end = self.share(rank)
        return round_up(end - start)

    def region_bytes(self, rank: int) -> int:
        """Bytes of data in the region of ``rank``."""
        return self.private_offset(rank) + self.private_bytes

    def replicated_pieces(self, start: int, end: int) -> Iterator[Piece]:
        """The parts of tensors in ``start`` to ``end`` of the replicated space; offsets count from ``start``."""
        order = self._replicated
        first = max(0, bisect_right(order, start, key=lambda index: self.specs[index].offset) - 1)
        for index in order[first:]:
            spec = self.specs[index]
            if spec.offset >= end:
                return
            low, high = max(start, spec.offset), min(end, spec.offset + spec.size_bytes)
            if low < high:
                yield Piece(index, low - spec.offset, high - spec.offset, low - start)

    def private_pieces(self, rank: int) -> Iterator[Piece]:
        """The rank's own tensors; offsets count from the start of its region."""
        base = self.private_offset(rank)
        for index, spec in enumerate(self.specs):
            if not spec.replicated and spec.size_bytes:
                yield Piece(index, 0, spec.size_bytes, base + spec.offset)

    def region_pieces(self, rank: int) -> Iterator[Piece]:
        """All that the region of ``rank`` holds."""
        yield from self.replicated_pieces(*self.share(rank))
        yield from self.private_pieces(rank)


def lay_out(tensors: list[torch.Tensor], names: list[str], replicated: list[bool], world_size: int) -> Layout:
    """Give each tensor its place: one after another in its space, aligned."""
    ends = {True: 0, False: 0}
    specs = []
    for tensor, name, shared in zip(tensors, names, replicated, strict=True):
        size = tensor.numel() * tensor.element_size()
        specs.append(
            TensorSpec(
                name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), _kept_strides(tensor),
                tensor.device.type, shared, ends[shared], size,
            )
        )  # fmt: skip
        ends[shared] += round_up(size)
    return Layout(tuple(specs), world_size)


def is_dense(tensor: torch.Tensor) -> bool:
    """Its elements fill one piece of memory without gaps or overlaps, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
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
