"""What two parts of a tensor have in common, as copies from the memory of the one into that of the other.

A `Block` is a run of bytes, repeated at equal steps in any number of dimensions, so that a box of a large matrix is one
of them and not thousands. Everything here is in bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise, product, takewhile
from math import prod
from typing import NamedTuple

from ftrain.logical.axes import Axis, in_common


class Block(NamedTuple):
    """Runs of ``length`` bytes, ``counts[i]`` of them at distances ``steps[i]``; the source's widest steps first."""

    source: int
    """Where the first run begins."""
    target: int
    length: int
    counts: tuple[int, ...] = ()
    source_steps: tuple[int, ...] = ()
    target_steps: tuple[int, ...] = ()

    @property
    def span(self) -> int:
        """From the first byte of the source to behind the last."""
        return self.length + sum((n - 1) * step for n, step in zip(self.counts, self.source_steps, strict=True))

    @property
    def size(self) -> int:
        """Bytes that are copied."""
        return self.length * prod(self.counts)

    def half(self, first: bool) -> Block:
        """The first or the second half of the runs that lie widest apart."""
        half = (self.counts[0] + 1) // 2
        count = half if first else self.counts[0] - half
        begin = self if first else self.moved(half * self.source_steps[0], half * self.target_steps[0])
        if count > 1:
            return begin._replace(counts=(count, *self.counts[1:]))
        rest = self.counts[1:], self.source_steps[1:], self.target_steps[1:]
        return Block(begin.source, begin.target, self.length, *rest)

    def moved(self, source: int, target: int) -> Block:
        """The same, further on."""
        return self._replace(source=self.source + source, target=self.target + target)


def common_blocks(
    source: Sequence[Axis],
    source_strides: Sequence[int],
    target: Sequence[Axis],
    target_strides: Sequence[int],
    item_bytes: int,
) -> tuple[Block, ...]:
    """All elements that both parts have. Strides are in elements, by dimension."""
    if not source:
        return (Block(0, 0, item_bytes),)
    runs = [list(in_common(a, b)) for a, b in zip(source, target, strict=True)]
    strides = [(s * item_bytes, t * item_bytes) for s, t in zip(source_strides, target_strides, strict=True)]
    return tuple(_block(picked, strides, item_bytes) for picked in product(*runs))


def _block(picked: Sequence[tuple[int, int, int]], strides: Sequence[tuple[int, int]], item_bytes: int) -> Block:
    """One box: its dimensions are joined wherever both memories go on without a gap."""
    source, target = (
        sum(run[side] * steps[side] for run, steps in zip(picked, strides, strict=True)) for side in (0, 1)
    )
    inner_first = sorted((*steps, run[2]) for run, steps in zip(picked, strides, strict=True) if run[2] > 1)
    length, outer = item_bytes, list[tuple[int, int, int]]()
    for source_step, target_step, count in inner_first:
        if outer:
            below = outer[-1]
            if (source_step, target_step) == (below[0] * below[2], below[1] * below[2]):
                outer[-1] = below[0], below[1], below[2] * count
                continue
        elif source_step == target_step == length:
            length *= count
            continue
        outer.append((source_step, target_step, count))
    outer.reverse()
    counts, source_steps, target_steps = (tuple(each[at] for each in outer) for at in (2, 0, 1))
    return Block(source, target, length, counts, source_steps, target_steps)


def cut(block: Block, edges: Sequence[int], span_max: int, gap_max: int) -> Iterator[Block]:
    """The same in blocks that span at most ``span_max`` bytes of the source, with no gap in it above ``gap_max``.

    ``edges``: rising offsets in the source that no block lies across.
    """
    stop = block.source + block.span
    at = bisect_right(edges, block.source)
    crosses = at < len(edges) and edges[at] < stop
    if block.counts:
        gap = block.source_steps[0] - (block.span - (block.counts[0] - 1) * block.source_steps[0])
        if not crosses and block.span <= span_max and gap <= gap_max:
            yield block
        else:
            yield from cut(block.half(True), edges, span_max, gap_max)
            yield from cut(block.half(False), edges, span_max, gap_max)
    elif not crosses and block.length <= span_max:
        yield block
    else:
        marks = [block.source, *takewhile(lambda edge: edge < stop, edges[at:]), stop]
        for low, high in pairwise(marks):
            for start in range(low, high, span_max):
                done = start - block.source
                yield block.moved(done, done)._replace(length=min(span_max, high - start))
