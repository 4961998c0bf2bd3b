"""What a snapshot holds, as a writer sees it: one rank's manifest, taken apart into what DCP calls items.

Tensors are stood for by meta tensors, so that DCP's own walk names every value as ``dcp.save`` would have done, before
a single byte is read. A *plain key* is such a name (``optimizer.state.0.exp_avg``); everything else that a resume needs
lies under ``ftrain.``.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint._traverse import traverse_state_dict

from ftrain.durable.source import READ_BYTES, Source
from ftrain.encoding import unpack
from ftrain.layout import Kind, Layout, Piece, TensorSpec
from ftrain.logical.errors import LayoutInvalid
from ftrain.reading import read_manifest
from ftrain.shards import Box, Part, ShardSpec, boxes_of, replaced
from ftrain_snapshot.errors import SnapshotIncomplete

Path = tuple[str | int, ...]
"""Where DCP puts a value back: its planner data."""
BLOCKS_KEPT = 4
"""Blocks of READ_BYTES in memory, besides the tensor that is being written."""


@dataclass(frozen=True)
class Leaf:
    """One value that DCP would store: a tensor (its index), or an object."""

    path: Path
    index: int | None
    value: Any
    spec: ShardSpec | None = None
    """Of a part of a sharded tensor: what it is a part of."""


class Shard(NamedTuple):
    """One of a rank's tensors as a part of a whole."""

    key: str
    """Its first plain key on its rank."""
    spec: ShardSpec
    boxes: tuple[Box, ...]


class RankContents:
    """One rank's manifest. Raises StateMismatch if it cannot be read."""

    def __init__(self, rank: int, world_size: int, manifest: bytes) -> None:
        content, self.layout, self._tail = read_manifest(manifest, rank, world_size)
        self.rank = rank
        self.manifest = manifest
        self.specs = specs_of(self.layout, self._tail)
        """The rank's tensors; an index here is one into this."""
        self.content = content
        self._parts: dict[int, ShardSpec] = {}
        self._kept: list[torch.Tensor] = []

    @property
    def data_bytes(self) -> int:
        """Length of its data: the planned tensors' region, and the tail behind it."""
        return self.layout.region_bytes(self.rank) + self._tail.region_bytes(0)

    def stretches(self, index: int) -> list[Stretch]:
        """Where one of its tensors lies."""
        spec, planned = self.specs[index], len(self.layout.specs)
        if index < planned and spec.kind.replicated:
            return shared_stretches(self.layout, index)
        layout, rank, base = (
            (self.layout, self.rank, 0) if index < planned else (self._tail, 0, self.layout.region_bytes(self.rank))
        )
        return [Stretch(self.rank, 0, spec.size_bytes, base + layout.region_offset(rank, spec.kind) + spec.offset)]

    def pieces(self) -> Iterator[Piece]:
        """All that its data holds, in order; of tensors as they are counted here."""
        yield from self.layout.region_pieces(self.rank)
        base = self.layout.region_bytes(self.rank)
        for piece in self._tail.region_pieces(0):
            index = len(self.specs) - 1 - piece.index
            yield replace(piece, index=index, region_offset=base + piece.region_offset)

    def shared_offset(self, kind: Kind) -> int:
        """Where this rank's share of a replicated space begins in its data."""
        return self.layout.region_offset(self.rank, kind)

    @cached_property
    def plain(self) -> dict[str, Leaf]:
        """The leaves of the tracked objects' state dicts, by plain key."""
        tree = replaced(unpack(self.content.tree, self.stand_ins), self._part)
        found: dict[str, Leaf] = {}

        def visit(path: Path, value: object) -> None:
            key = ".".join(map(str, path))
            if key in found or not _is_text(key):
                return  # {1: a, "1": b} read alike: dcp.save refuses them, here the first one has the name
            index = self.index_of(value) if isinstance(value, torch.Tensor) else None
            found[key] = Leaf(path, index, None if index is not None else value, self._parts.get(id(value)))

        objects = tree["objects"].items()
        traverse_state_dict({name: state["state"] for name, state in objects}, visit)
        alone = {name: {"params": state["params"]} for name, state in objects if "params" in state}
        traverse_state_dict(alone, visit)  # beside what it gives, what an optimizer alone has
        return found

    @cached_property
    def shards(self) -> dict[int, Shard]:
        """The tensors that are stored as boxes of a whole, by index; not those that all ranks of the job share."""
        found: dict[int, Shard] = {}
        for key, leaf in self.plain.items():
            if leaf.spec is None or leaf.index is None or leaf.index in found:
                continue
            if not self.specs[leaf.index].kind.replicated:
                with suppress(LayoutInvalid):  # then it is this rank's alone, for who resumes here
                    boxes = boxes_of(leaf.spec, self.rank, self.specs[leaf.index].shape)
                    found[leaf.index] = Shard(key, leaf.spec, boxes)
        return found

    def _part(self, part: Part) -> torch.Tensor:
        """Another stand-in for a sharded tensor's local part, which says what it is a part of."""
        stand_in: torch.Tensor = part.local.detach()
        self._indices[id(stand_in)] = self._indices[id(part.local)]
        self._parts[id(stand_in)] = part.spec
        self._kept.append(stand_in)
        return stand_in

    @cached_property
    def stand_ins(self) -> list[torch.Tensor]:
        """A tensor without bytes for each of the rank's tensors."""
        return [
            torch.empty_strided(spec.shape, spec.strides, dtype=getattr(torch, spec.dtype), device="meta")
            for spec in self.specs
        ]

    @cached_property
    def _indices(self) -> dict[int, int]:
        return {id(tensor): index for index, tensor in enumerate(self.stand_ins)}

    def index_of(self, stand_in: torch.Tensor) -> int:
        """Which tensor it stands for."""
        return self._indices[id(stand_in)]

    def with_tensors(self, value: Any, reader: RegionReader) -> Any:
        """An object as it was: stand-ins inside it (of a tuple, say) give way to the tensors themselves."""
        inside = list(_tensors_in(value))
        if not inside:
            return value
        # deepcopy takes from its memo what it has seen before.
        return copy.deepcopy(value, {id(each): reader.tensor(self.rank, self.index_of(each)) for each in inside})


class RegionReader:
    """Tensors out of the regions of all ranks, one at a time; reads in blocks and keeps a few, for small tensors."""

    def __init__(self, source: Source, lanes: int, world_size: int) -> None:
        self._source, self._lanes, self._world_size = source, lanes, world_size
        self._contents: dict[int, RankContents] = {}
        self._blocks: OrderedDict[tuple[int, int], memoryview] = OrderedDict()

    def contents(self, rank: int) -> RankContents:
        """A rank's manifest, read once. Raises StateMismatch, and what `Source.manifest` raises."""
        if rank not in self._contents:
            manifest = self._source.manifest(*divmod(rank, self._lanes))
            self._contents[rank] = RankContents(rank, self._world_size, manifest)
        return self._contents[rank]

    def tensor(self, rank: int, index: int) -> torch.Tensor:
        """One tensor of a rank. Raises what `Source.read` raises."""
        contents = self.contents(rank)
        spec = contents.specs[index]
        tensor = spec.empty()
        if spec.size_bytes:
            target = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data
            for stretch in contents.stretches(index):
                # Where a shared space begins in another rank's data is for that rank's own layout to say.
                base = self.contents(stretch.rank).shared_offset(spec.kind) if spec.kind.replicated else 0
                self._fill(target[stretch.start : stretch.end], stretch.rank, base + stretch.offset)
        return tensor

    def _fill(self, target: memoryview, rank: int, start: int) -> None:
        done = 0
        while done < len(target):
            number, offset = divmod(start + done, READ_BYTES)
            part = self._block(rank, number)[offset : offset + len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)

    def _block(self, rank: int, number: int) -> memoryview:
        block = self._blocks.get((rank, number))
        if block is None:
            while len(self._blocks) >= BLOCKS_KEPT:
                self._blocks.popitem(last=False)
            start = number * READ_BYTES
            stop = min(self.contents(rank).data_bytes, start + READ_BYTES)
            block = memoryview(bytes(self._source.read(*divmod(rank, self._lanes), start, stop)))
            if len(block) != stop - start or not block:
                raise SnapshotIncomplete(f"rank {rank}: {len(block)} bytes at {start}, where {stop - start} were due")
            self._blocks[rank, number] = block
        return block


class Stretch(NamedTuple):
    """Bytes ``start`` to ``end`` of a tensor lie at ``offset`` of the data of ``rank``; of a replicated one: of what
    ``rank`` keeps of its space."""

    rank: int
    start: int
    end: int
    offset: int


def specs_of(layout: Layout, tail: Layout) -> list[TensorSpec]:
    """All tensors in an order in which the tree's indices, -1, -2, ... for the tail, are those of a list."""
    return [*layout.specs, *reversed(tail.specs)]


def shared_stretches(layout: Layout, index: int) -> list[Stretch]:
    """Where a replicated tensor lies: with one rank, or with neighbours."""
    spec, ranks = layout.specs[index], range(layout.world_size)
    first = bisect_right(ranks, spec.offset, key=lambda owner: layout.share(owner, spec.kind)[0]) - 1
    found = []
    for owner in ranks[first:]:
        start, end = layout.share(owner, spec.kind)
        if start >= spec.offset + spec.size_bytes:
            break
        low, high = max(start, spec.offset), min(end, spec.offset + spec.size_bytes)
        if low < high:  # shares in between may be empty
            found.append(Stretch(owner, low - spec.offset, high - spec.offset, low - start))
    return found


def keeper_of(layout: Layout, index: int, lanes: int) -> int:
    """The position that writes a replicated tensor: the one whose ranks hold most of it, the first of equals."""
    held: dict[int, int] = {}
    for stretch in shared_stretches(layout, index):
        position = stretch.rank // lanes
        held[position] = held.get(position, 0) + stretch.end - stretch.start
    return max(held, key=lambda position: (held[position], -position)) if held else 0


def tensor_keys(contents: RankContents, first: RankContents) -> list[str]:
    """Under which key each tensor of a rank is stored. ``first`` is rank 0.

    The plain key for what all ranks share, for rank 0's own, and for a sharded tensor that rank 0 has a part of;
    ``ftrain.mesh{r}.{plain key}`` for other sharded ones, where r is the lowest rank of its mesh, since pipeline stages
    may mean different tensors by one key; ``ftrain.rank{r}.{name}`` for the rest.
    """
    shared = iter(_first_keys(first, replicated=True))
    private = _first_keys(first, replicated=False) if contents.rank == 0 else _own_keys(contents)
    own = iter(private)
    keys = [next(shared) if spec.kind.replicated else next(own) for spec in contents.specs]
    if contents.rank:
        for index, shard in contents.shards.items():
            keys[index] = _shard_key(contents.specs[index], shard, first)
    return keys


def _shard_key(spec: TensorSpec, shard: Shard, first: RankContents) -> str:
    leaf = first.plain.get(shard.key)
    if leaf is not None and leaf.index in first.shards:
        theirs = first.shards[leaf.index]
        if theirs[:2] == shard[:2] and first.specs[leaf.index].dtype == spec.dtype:
            return shard.key
    return f"ftrain.mesh{min(shard.spec.mesh.ranks)}.{shard.key}"


def _first_keys(first: RankContents, *, replicated: bool) -> list[str]:
    names: dict[int, str] = {}
    for key, leaf in first.plain.items():
        if leaf.index is not None:
            names.setdefault(leaf.index, key)
    prefix = "ftrain.replicated" if replicated else "ftrain.rank0"
    wanted = [index for index, spec in enumerate(first.specs) if spec.kind.replicated is replicated]
    others = iter(_distinct(prefix, (first.specs[index].name for index in wanted if index not in names)))
    return [names[index] if index in names else next(others) for index in wanted]


def _own_keys(contents: RankContents) -> list[str]:
    names = (spec.name for spec in contents.specs if not spec.kind.replicated)
    return _distinct(f"ftrain.rank{contents.rank}", names)


def _distinct(prefix: str, names: Iterable[str]) -> list[str]:
    """Keys for names that may read alike."""
    seen: dict[str, None] = {}
    for name in names:
        key, again = f"{prefix}.{name}", 1
        while key in seen:
            again += 1
            key = f"{prefix}.{name}#{again}"
        seen[key] = None
    return list(seen)


def _is_text(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensors_in(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors_in(key)
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            yield from _tensors_in(item)
