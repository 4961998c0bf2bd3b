"""A plan of reads carried out: verified bytes to where they belong, in the memory of live tensors.

Bytes of this node lie in its shared memory and are copied from there; all others are asked of the daemon, several reads
under way, taking the nodes in turn, and each new rank begins with another. They are received where they belong, or by
way of a small buffer if that is not one piece of main memory: beside what is filled there is next to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, zip_longest
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ftrain.durable.source import Source
from ftrain.layout import flat_bytes
from ftrain.logical.reads import Copy, Plan, Read
from ftrain.logical.scatter import Bytes, scatter
from ftrain.together import THREADS
from ftrain_snapshot.read_plan import Wanted

SCRATCH_BYTES = 8 << 20
"""For what comes from afar and is not to lie in one piece."""


class Reading(Source, Protocol):
    """Where bytes come from."""

    def read_into(self, wanted: Iterable[Wanted]) -> None:
        """Bytes of other nodes, proved right, straight to where they are wanted; several reads under way."""


class Places:
    """Where the bytes of a plan go: to ``terms[t][i]`` for term t of the target's tensor i, all of them dense."""

    def __init__(self, terms: Sequence[Sequence[Tensor]]) -> None:
        self._flats = [[_flat(tensor) for tensor in tensors] for tensors in terms]
        self._here = [[_memory(flat) if flat.device.type == "cpu" else None for flat in flats] for flats in self._flats]

    def direct(self, copy: Copy) -> memoryview | None:
        """Where a copy's bytes go as they are; None: not into one piece of main memory."""
        memory, block = self._here[copy.term][copy.tensor], copy.block
        if memory is None or block.counts:
            return None
        return memory[block.target : block.target + block.length].data

    def put(self, read: Read, data: Bytes) -> None:
        """Copy what was read to where it belongs."""
        here = tuple(copy for copy in read.copies if self._here[copy.term][copy.tensor] is not None)
        scatter(read._replace(copies=here), data, self._memory_of)
        for copy in read.copies if len(here) < len(read.copies) else ():
            if self._here[copy.term][copy.tensor] is None:
                block, flat = copy.block, self._flats[copy.term][copy.tensor]
                shape = (*block.counts, block.length)
                source = np.ndarray(shape, np.uint8, data.data, copy.start - read.start, (*block.source_steps, 1))
                target = flat.as_strided(shape, (*block.target_steps, 1), flat.storage_offset() + block.target)
                target.copy_(torch.from_numpy(np.ascontiguousarray(source)))

    def _memory_of(self, tensor: int, term: int) -> Bytes:
        found = self._here[term][tensor]
        assert found is not None
        return found


def _flat(tensor: Tensor) -> Tensor:
    flat = flat_bytes(tensor)
    assert flat is not None
    return flat


def _memory(flat: Tensor) -> Bytes:
    """A flat tensor's bytes. Not by way of ``numpy()``, after which torch would resize it no more."""
    if not flat.numel():
        return np.empty(0, np.uint8)
    return np.asarray(_Memory(flat))


class _Memory:
    """As numpy likes to be told of memory."""

    def __init__(self, flat: Tensor) -> None:
        self.flat = flat
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (flat.numel(),), "data": (flat.data_ptr(), False)
        }  # fmt: skip


def fill(plan: Plan, places: Places, source: Reading, lanes: int, position: int, rank: int) -> None:
    """Read all of ``plan`` to its places. Raises what ``source`` raises; then what was filled is worth nothing.

    ``position``: this node's in the world that is read; ``rank``: this one's in its own, so that not all begin alike.
    """

    def copy(read: Read) -> None:
        data = source.read(*divmod(read.rank, lanes), read.start, read.stop)
        places.put(read, np.frombuffer(data, np.uint8))

    near = [read for read in plan.reads if read.rank // lanes == position]
    far = _in_turn([read for read in plan.reads if read.rank // lanes != position], lanes, rank)
    with ThreadPoolExecutor(1 + THREADS) as pool:
        rest = pool.submit(_fill_from_afar, far, places, source, lanes)
        for _ in pool.map(copy, near):  # raises what one has raised
            pass
        rest.result()


def _fill_from_afar(reads: Sequence[Read], places: Places, source: Reading, lanes: int) -> None:
    straight: list[Wanted] = []
    indirect: list[Read] = []
    for read in reads:
        targets = [places.direct(copy) for copy in read.copies]
        found = [
            Wanted(*divmod(read.rank, lanes), copy.start, into)
            for copy, into in zip(read.copies, targets, strict=True)
            if into is not None
        ]
        straight += found
        if len(found) < len(targets):
            left = tuple(copy for copy, into in zip(read.copies, targets, strict=True) if into is None)
            stop = max(copy.stop for copy in left)
            indirect.append(read._replace(start=left[0].start, stop=stop, copies=left))
    if straight:
        source.read_into(straight)
    scratch = np.empty(min(SCRATCH_BYTES, sum(read.stop - read.start for read in indirect)), np.uint8)
    for batch in _batches(indirect, len(scratch)):
        ends = accumulate(read.stop - read.start for read in batch)
        pieces = [scratch[end - (read.stop - read.start) : end] for read, end in zip(batch, ends, strict=True)]
        source.read_into(
            Wanted(*divmod(read.rank, lanes), read.start, piece.data) for read, piece in zip(batch, pieces, strict=True)
        )
        for read, piece in zip(batch, pieces, strict=True):
            places.put(read, piece)


def _batches(reads: Iterable[Read], size_max: int) -> Iterator[list[Read]]:
    """In order, as many at a time as have room."""
    batch: list[Read] = []
    size = 0
    for read in reads:
        length = read.stop - read.start
        if batch and size + length > size_max:
            yield batch
            batch, size = [], 0
        batch.append(read)
        size += length
    if batch:
        yield batch


def _in_turn(reads: Sequence[Read], lanes: int, rank: int) -> list[Read]:
    """One of each node after the other, and what must be decoded last."""
    ordered: list[Read] = []
    for lost in (False, True):
        by_node: dict[int, list[Read]] = defaultdict(list)
        for read in reads:
            if read.lost is lost:
                by_node[read.rank // lanes].append(read)
        nodes = sorted(by_node)
        first = rank % len(nodes) if nodes else 0
        rows = zip_longest(*(by_node[node] for node in (*nodes[first:], *nodes[:first])))
        ordered += [read for row in rows for read in row if read is not None]
    return ordered
