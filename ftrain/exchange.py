"""Replicated tensors, of which each rank captured an equal share, given to the ranks that lack the other shares.

A share is cut into slices, and in round i all owners' i-th slices go round: by broadcasts to all ranks; or, where at
most half of them lack any, to each of these alone, who gathers them. A rank that has kept live tensors (live.py) shows
for each round that they are the snapshot's: owners tell digests of their slices, and it compares its own. Rounds in
which it fails it takes like a newcomer.

All operations have a root: those in which all take the same part would tell the detector that all ranks do the same
work, those between two that they are stages of a pipeline (detect/roles.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from ftrain.layout import REGION_ORDER, Kind, Layout, round_up
from ftrain.plan import view_of
from ftrain.together import each

ROUND_BYTES = 32 << 20
"""So much goes round at once, in all."""
SLICE_BYTES_MIN = 64 << 10


class Slice(NamedTuple):
    """Bytes ``start`` to ``end`` of a replicated space, of which ``owner`` has captured them."""

    owner: int
    start: int
    end: int


def rounds_of(layout: Layout, kind: Kind) -> list[list[Slice]]:
    """What goes round together; of owners whose share has come to its end there is none."""
    length = max(SLICE_BYTES_MIN, round_up(ROUND_BYTES // layout.world_size))
    shares = [layout.share(rank, kind) for rank in range(layout.world_size)]
    count = -(-max(end - start for start, end in shares) // length)
    return [
        [
            Slice(owner, low, min(end, low + length))
            for owner, (start, end) in enumerate(shares)
            if (low := start + number * length) < end
        ]
        for number in range(count)
    ]


def digest(layout: Layout, kind: Kind, part: Slice, flats: Sequence[Tensor]) -> int:
    """Of the tensors' bytes in a slice; what lies between tensors is not looked at."""
    hasher = xxhash.xxh3_64()
    for piece in layout.pieces(kind, part.start, part.end):
        hasher.update(view_of(flats[piece.index], locked=False)[piece.start : piece.end])
    return hasher.intdigest()


def exchange(
    layout: Layout, rank: int, share: Callable[[int, int], Tensor], flats: Sequence[Tensor], kept: Collection[int]
) -> int:
    """Fill ``flats`` with what other ranks captured; how many bytes of tensors were taken from them. A collective.

    Args:
        share: bytes of this rank's region; ``flats`` has its own share already.
        kept: the tensors whose bytes may be there already.
    """
    some = bool(_tell_all([int(bool(kept))], layout.world_size).any())
    taken = 0
    for kind in REGION_ORDER:
        rounds = rounds_of(layout, kind) if kind.replicated else []
        if not rounds:
            continue
        lacking = np.ones((layout.world_size, len(rounds)), bool)
        if some:
            lacking = _find_lacking(layout, kind, rank, rounds, flats, kept)
        base, (start, _) = layout.region_offset(rank, kind), layout.share(rank, kind)

        def own(part: Slice, base: int = base - start) -> Tensor:
            return share(base + part.start, base + part.end)

        for number, slices in enumerate(rounds):
            takers: list[int] = np.flatnonzero(lacking[:, number]).tolist()
            everybody = 2 * len(takers) > layout.world_size
            for part, content in _broadcast(slices, rank, own) if everybody else _gather(slices, rank, own, takers):
                if rank in takers and part.owner != rank:
                    taken += _scatter(layout, kind, part, content, flats)
    return taken


def _find_lacking(
    layout: Layout, kind: Kind, rank: int, rounds: list[list[Slice]], flats: Sequence[Tensor], kept: Collection[int]
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which ranks lack anything of which rounds."""

    def own(slices: list[Slice]) -> int:
        return sum(digest(layout, kind, part, flats) for part in slices if part.owner == rank)  # one at most

    def lacks(number: int) -> bool:
        return any(
            any(piece.index not in kept for piece in layout.pieces(kind, part.start, part.end))
            or digest(layout, kind, part, flats) != told[part.owner, number]
            for part in rounds[number]
            if part.owner != rank
        )

    size_bytes = sum(part.end - part.start for slices in rounds for part in slices)
    told = _tell_all(each(own, rounds, size_bytes // layout.world_size), layout.world_size)
    return _tell_all(each(lacks, range(len(rounds)), size_bytes), layout.world_size).astype(bool)


def _tell_all(values: Sequence[int], world_size: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Each rank's numbers, as many on all: one row for each rank."""
    device = exchange_device()
    row = torch.from_numpy(np.array(values, np.uint64).view(np.int64)).to(device)
    rows = [torch.empty_like(row) for _ in range(world_size)]
    dist.gather(row, rows if dist.get_rank() == 0 else None, dst=0)
    table = torch.stack(rows)
    dist.broadcast(table, src=0)
    return table.cpu().numpy().view(np.uint64)


def _broadcast(slices: list[Slice], rank: int, own: Callable[[Slice], Tensor]) -> Iterator[tuple[Slice, Tensor]]:
    device = exchange_device()
    scratch = torch.empty(max(part.end - part.start for part in slices), dtype=torch.uint8, device=device)
    for part in slices:
        content = own(part).to(device) if part.owner == rank else scratch[: part.end - part.start]
        dist.broadcast(content, src=part.owner)
        yield part, content


def _gather(
    slices: list[Slice], rank: int, own: Callable[[Slice], Tensor], takers: list[int]
) -> Iterator[tuple[Slice, Tensor]]:
    """Each taker in turn; all send equally much, the shorter ones with zeros behind."""
    if not takers:
        return
    size = max(part.end - part.start for part in slices)
    content = torch.zeros(size, dtype=torch.uint8, device=exchange_device())
    for part in slices:
        if part.owner == rank:
            content[: part.end - part.start].copy_(own(part))
    for taker in takers:
        if rank != taker:
            dist.gather(content, dst=taker)
            continue
        found = [torch.empty_like(content) for _ in range(dist.get_world_size())]
        dist.gather(content, found, dst=taker)
        for part in slices:
            yield part, found[part.owner]


def _scatter(layout: Layout, kind: Kind, part: Slice, content: Tensor, flats: Sequence[Tensor]) -> int:
    """Put a slice where its tensors are; their bytes."""
    taken = 0
    for piece in layout.pieces(kind, part.start, part.end):
        end = piece.region_offset + piece.end - piece.start
        flats[piece.index][piece.start : piece.end].copy_(content[piece.region_offset : end])
        taken += piece.end - piece.start
    return taken


def exchange_device() -> torch.device:
    """Where tensors are that travel over the default process group."""
    # "cpu:gloo,cuda:nccl" and gloo move CPU tensors; a plain nccl group only its GPU's.
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
