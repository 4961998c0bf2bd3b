"""Which bytes a rank reads from whom to fill its memory, whatever worlds the two are of.

    target rank ─> tensor ─> parts of the source that have some of it ─> blocks ─> the holder to ask ─> reads

Of the holders of the same part, those of this node come first (their bytes lie in its memory), then those of nodes that
have been asked for least, a few MiB in a row from each; lost ones last, for theirs must be decoded. What is read from
one rank is sorted, and joined where hardly anything lies in between. No rank needs another's plan.

Layers repeat, so the geometry is worked out once for each kind of tensor: the rest is additions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from ftrain.logical.axes import Axis
from ftrain.logical.blocks import Block, common_blocks, cut
from ftrain.logical.errors import StateUnreadable
from ftrain.logical.placements import Scope
from ftrain.logical.state import Held, LogicalTensor, RankState

READ_BYTES_MAX = 4 << 20
"""Longest read: what a snapshot daemon answers at once."""
GAP_BYTES_MAX = 64 << 10
"""Bytes that nobody wants are read along with their neighbours up to here: a read of its own costs more."""
TURN_BYTES = 16 << 20
"""Taken from one of several holders before another has its turn: long reads, and still an even spread."""


Sized = tuple[Block, int]
"""A block, and how many bytes of the source it spans."""


@dataclass(frozen=True)
class World:
    """Whose bytes there are."""

    states: tuple[RankState, ...]
    nodes: Mapping[int, int]
    """On which node each rank's bytes lie, or lay."""
    lost: frozenset[int] = frozenset()
    """Nodes that are gone: what they had is decoded."""

    @cached_property
    def tensors(self) -> dict[str, LogicalTensor]:
        """One part of each tensor, by name."""
        return {tensor.name: tensor for state in reversed(self.states) for tensor in state.tensors}


class Copy(NamedTuple):
    """Where some of the bytes of a read go."""

    start: int
    """Of its first byte in what the source keeps."""
    stop: int
    tensor: int
    """Index into the target's tensors."""
    term: int
    """Which one of the values to be averaged or compared; 0 of all others."""
    block: Block
    """Its ``source`` counts from elsewhere: see ``start``."""


class Read(NamedTuple):
    """Bytes ``start`` to ``stop`` of what a rank keeps."""

    rank: int
    start: int
    stop: int
    lost: bool
    copies: tuple[Copy, ...]
    """By rising start."""


@dataclass(frozen=True)
class Plan:
    """All that one rank reads: first from its own node, then from others, then what must be decoded."""

    reads: tuple[Read, ...]
    terms: Mapping[int, int]
    """Of tensors to be averaged or compared, by index: how many values. Those from 1 on go to scratch memory like the
    tensor's."""


class _Part(NamedTuple):
    """What the holders of one part keep of it: between two ``edges``, those ranks, with the base of each."""

    edges: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]
    bases: tuple[tuple[int, ...], ...]


class _Source(NamedTuple):
    """Holders of a tensor of which any one of the same part will do."""

    holders: Sequence[Held]
    kinds: tuple[tuple[tuple[Axis, ...], tuple[int, ...]], ...]
    """Axes and strides of each part."""
    kind: int
    """The same for all with the same ``kinds``."""
    by_part: tuple[list[Held], ...]
    """Who holds each part."""
    parts: dict[int, _Part]
    """What they keep of it, by number: of those that somebody has asked for."""

    @property
    def first(self) -> LogicalTensor:
        """What all holders agree on."""
        return self.holders[0][1]

    def part(self, number: int) -> _Part:
        """One of the parts."""
        if number not in self.parts:
            self.parts[number] = _part(self.by_part[number])
        return self.parts[number]


class Planner:
    """Plans of all that read from one world; that it is whole is for `ftrain.logical.coverage.check` to say."""

    def __init__(self, world: World) -> None:
        self.world = world
        holders: dict[str, list[Held]] = defaultdict(list)
        for state in sorted(world.states, key=attrgetter("rank")):
            for tensor in state.tensors:
                holders[tensor.name].append((state.rank, tensor))
        self._kinds: dict[object, int] = {}
        self._holders = holders
        self._sources: dict[str, _Source] = {}
        self._aliases = {alias: name for state in world.states for alias, name in state.aliases.items()}
        self._common: dict[object, list[tuple[int, list[Sized]]]] = {}
        self._plans: dict[tuple[int, int], Plan] = {}

    def plan(self, target: RankState, node: int) -> Plan:
        """What the rank that is described must read, on that node; made once.

        Raises StateUnreadable if this world has not all that the rank holds.
        """
        key = target.digest, node
        if key not in self._plans:
            self._plans[key] = self._make(target, node)
        return self._plans[key]

    def _make(self, target: RankState, node: int) -> Plan:
        turns = _Turns(self.world, node)
        copies: dict[int, list[Copy]] = defaultdict(list)
        terms: dict[int, int] = {}
        for index, (tensor, found) in enumerate(zip(target.tensors, self._found(target), strict=True)):
            sources = self._terms(found, tensor, target.rank)
            if len(sources) > 1:
                terms[index] = len(sources)
            for term, source in enumerate(sources):
                _must_match(tensor, source.first)
                for number, blocks in self._blocks(source, tensor):
                    for rank, start, stop, block in _asked(source.part(number), blocks, turns, tensor.name):
                        copies[rank].append(Copy(start, stop, index, term, block))
        return Plan(tuple(_reads(copies, turns)), terms)

    def scopes(self, target: RankState) -> list[Scope]:
        """What ranks here hold of each of the target's tensors: the same, or values of their own.

        Raises StateUnreadable.
        """
        return [source.first.scope for source in self._found(target)]

    def _found(self, target: RankState) -> Iterator[_Source]:
        """Of each of its tensors."""
        aliases: dict[str, list[str]] = defaultdict(list)
        for alias, name in target.aliases.items():
            aliases[name].append(alias)
        for tensor in target.tensors:
            yield self._find(tensor.name, aliases[tensor.name])

    def _find(self, name: str, aliases: Sequence[str]) -> _Source:
        """By its name or another of its names, here or there."""
        for each in (name, *aliases):
            for there in (each, self._aliases.get(each, "")):
                if there not in self._sources and there in self._holders:
                    self._sources[there] = self._source(self._holders[there])
                if there in self._sources:
                    return self._sources[there]
        raise StateUnreadable(f"{name}: no rank of the world that is read from holds it")

    def _terms(self, source: _Source, tensor: LogicalTensor, rank: int) -> list[_Source]:
        """What is read one beside the other: all values that are to be averaged, or to be one; else one."""
        if source.first.scope is Scope.SAME:
            return [source]
        if source.first.scope is Scope.OWN and tensor.scope is not Scope.OWN:
            return [self._source([held]) for held in source.holders]
        if source.first.scope is Scope.OWN:
            # A rank that is new takes over another's, each in turn.
            position = next((at for at, (holder, _) in enumerate(source.holders) if holder == rank), rank)
            return [self._source([source.holders[position % len(source.holders)]])]
        by_part: dict[object, list[Held]] = defaultdict(list)
        for held in source.holders:
            by_part[held[1].axes].append(held)
        return [self._source(held) for held in zip(*by_part.values(), strict=True)]

    def _source(self, holders: Sequence[Held]) -> _Source:
        by_part: dict[tuple[tuple[Axis, ...], tuple[int, ...]], list[Held]] = defaultdict(list)
        for held in holders:
            by_part[held[1].axes, held[1].strides].append(held)
        kinds = tuple(by_part)
        kind = self._kinds.setdefault(kinds, len(self._kinds))
        return _Source(holders, kinds, kind, tuple(by_part.values()), {})

    def _blocks(self, source: _Source, tensor: LogicalTensor) -> list[tuple[int, list[Sized]]]:
        """(part, what it has in common with the target, in pieces), for each part that has anything."""
        key = source.kind, tensor.axes, tensor.strides, tensor.item_bytes
        if key not in self._common:
            found = []
            for number, (axes, strides) in enumerate(source.kinds):
                blocks = common_blocks(axes, strides, tensor.axes, tensor.strides, tensor.item_bytes)
                if pieces := [piece for block in blocks for piece in _sized(block)]:
                    found.append((number, pieces))
            self._common[key] = found
        return self._common[key]


class _Turns:
    """Whom to ask next."""

    def __init__(self, world: World, node: int) -> None:
        self.lost = {rank for rank, at in world.nodes.items() if at in world.lost}
        self._nodes, self._node = world.nodes, node
        self._asked: dict[int, int] = defaultdict(int)
        self._turn: dict[tuple[int, ...], tuple[int, int]] = {}

    def next(self, ranks: tuple[int, ...], size: int) -> int:
        """Which one of these ranks, by position, gives the next ``size`` bytes."""
        chosen = 0
        if len(ranks) > 1:
            chosen, left = self._turn.get(ranks, (0, 0))
            if left <= 0:
                chosen, left = min(range(len(ranks)), key=lambda position: self._cost(ranks[position])), TURN_BYTES
            self._turn[ranks] = chosen, left - size
        self._asked[self._nodes[ranks[chosen]]] += size
        return chosen

    def order(self, rank: int) -> int:
        """0: this node's, 1: another's, 2: lost."""
        return 2 if rank in self.lost else int(self._nodes[rank] != self._node)

    def _cost(self, rank: int) -> tuple[int, int, int]:
        # Of nodes that were asked for the same, each rank begins with another: all would begin with the first one.
        node = self._nodes[rank]
        return self.order(rank), self._asked[node], (node - self._node) % (1 + max(self._nodes.values()))


def _part(holders: Sequence[Held]) -> _Part:
    extents = [(extent, rank) for rank, tensor in holders for extent in tensor.extents]
    if len(extents) == 1:
        [((start, stop, offset), rank)] = extents
        return _Part((start, stop), ((rank,),), ((offset - start,),))
    edges = sorted({edge for extent, _ in extents for edge in (extent.start, extent.stop)})
    ranks, bases = [], []
    for low, high in pairwise(edges):
        having = [(rank, each.offset - each.start) for each, rank in extents if each.start <= low and high <= each.stop]
        ranks.append(tuple(rank for rank, _ in having))
        bases.append(tuple(base for _, base in having))
    return _Part(tuple(edges), tuple(ranks), tuple(bases))


def _sized(block: Block, edges: Sequence[int] = ()) -> list[Sized]:
    return [(piece, piece.span) for piece in cut(block, edges, READ_BYTES_MAX, GAP_BYTES_MAX)]


def _asked(part: _Part, blocks: Sequence[Sized], turns: _Turns, name: str) -> Iterator[tuple[int, int, int, Block]]:
    """(rank, start, stop, block): whom to ask for what, in what it keeps."""
    for block, span in blocks:
        at = bisect_right(part.edges, block.source)
        is_in_one = at < len(part.edges) and block.source + span <= part.edges[at]
        for piece, length in ((block, span),) if is_in_one else _sized(block, part.edges):
            at = bisect_right(part.edges, piece.source) - 1
            if not 0 <= at < len(part.ranks) or not part.ranks[at]:
                raise StateUnreadable(f"{name}: nobody keeps byte {piece.source} of one of its parts")
            ranks = part.ranks[at]
            chosen = turns.next(ranks, length)
            start = part.bases[at][chosen] + piece.source
            yield ranks[chosen], start, start + length, piece


def _must_match(target: LogicalTensor, source: LogicalTensor) -> None:
    if (target.dtype, target.shape) != (source.dtype, source.shape):
        raise StateUnreadable(
            f"{target.name} is {target.dtype} {list(target.shape)} here, "
            f"and {source.dtype} {list(source.shape)} in the world that is read from"
        )


def _reads(copies: Mapping[int, list[Copy]], turns: _Turns) -> Iterator[Read]:
    """The copies of each source, joined to reads."""
    for rank in sorted(copies, key=lambda rank: (turns.order(rank), rank)):
        joined: list[Copy] = []
        start = stop = 0
        for copy in sorted(copies[rank]):
            is_far = copy.start - stop > GAP_BYTES_MAX or max(stop, copy.stop) - start > READ_BYTES_MAX
            if joined and is_far:
                yield Read(rank, start, stop, rank in turns.lost, tuple(joined))
                joined = []
            if not joined:
                start = stop = copy.start
            stop = max(stop, copy.stop)
            joined.append(copy)
        yield Read(rank, start, stop, rank in turns.lost, tuple(joined))
