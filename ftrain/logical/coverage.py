"""Whether a world's ranks hold each element of each tensor, and as often as they say: nothing is trusted before.

Holders of the same part are *declared* replicas if there are as many of them as each one's layout says. Any other
overlap is a layout that is wrong: a tensor cut by hand that was taken for a replica, two stages' tensors of one name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from ftrain.logical.errors import StateUncovered
from ftrain.logical.grid import Axes, Miscount, miscounts
from ftrain.logical.placements import Scope
from ftrain.logical.state import Box, Held, LogicalTensor, RankState

FINDINGS_SHOWN = 5


class Finding(NamedTuple):
    """Something that is wrong with a tensor."""

    name: str
    problem: str
    ranks: tuple[int, ...]
    """Who is involved."""
    box: Box | None = None
    """Where in the whole."""

    def __str__(self) -> str:
        place = "" if self.box is None else f" at {list(self.box.offsets)} of size {list(self.box.sizes)}"
        who = f" (rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))})" if self.ranks else ""
        return f"{self.name}{place}: {self.problem}{who}"


def check(states: Iterable[RankState], *, are_kept: bool) -> None:
    """Raises StateUncovered, with the first of what `findings` finds."""
    if found := findings(states, are_kept=are_kept):
        shown = [str(finding) for finding in found[:FINDINGS_SHOWN]]
        rest = [f"{len(found) - len(shown)} more"] * (len(found) > len(shown))
        raise StateUncovered("the ranks do not hold what they say: " + "; ".join([*shown, *rest]))


def findings(states: Iterable[RankState], *, are_kept: bool) -> list[Finding]:
    """All that is wrong with what the ranks of a world, lost ones too, say they hold; nothing if it can be read.

    ``are_kept``: of a snapshot, all of whose bytes must lie somewhere; else of live memory.
    """
    holders: dict[str, list[Held]] = defaultdict(list)
    for state in states:
        for tensor in state.tensors:
            holders[tensor.name].append((state.rank, tensor))
    counted: dict[object, list[Miscount]] = {}
    sound: set[object] = set()
    found: list[Finding] = []
    for name, held in holders.items():
        said = tuple((rank, *_said(tensor)) for rank, tensor in held)  # layers are alike: look once
        if said not in sound:
            wrong = list(_of_tensor(name, held, counted, are_kept))
            found += wrong
            if not wrong:
                sound.add(said)
    return found


def _said(tensor: LogicalTensor) -> tuple[object, ...]:
    """All that a finding depends on."""
    extents = tuple((start, stop, offset < 0) for start, stop, offset in tensor.extents)
    return (
        tensor.dtype, tensor.item_bytes, tensor.shape, tensor.axes, tensor.strides, tensor.copies, tensor.scope, extents
    )  # fmt: skip


def _of_tensor(
    name: str, held: Sequence[Held], counted: dict[object, list[Miscount]], are_kept: bool
) -> Iterator[Finding]:
    for rank, tensor in held:
        if not is_sound(tensor):
            yield Finding(name, "its description contradicts itself", (rank,))
            return
    first = held[0][1]
    for rank, tensor in held:
        if (said := _agreed(tensor)) != _agreed(first):
            yield Finding(name, f"{said} here, {_agreed(first)} there", (rank, held[0][0]))
            return
    parts: dict[Axes, list[Held]] = defaultdict(list)
    for rank, tensor in held:
        parts[tensor.axes].append((rank, tensor))
    if are_kept:
        for group in parts.values() if first.scope is Scope.SAME else ([each] for each in held):
            yield from _unkept(name, group)
    if first.scope is Scope.OWN:
        return
    for group in parts.values():
        yield from _undeclared(name, group)
    key = first.shape, tuple(parts)  # layers are alike: count once
    if key not in counted:
        counted[key] = miscounts(*key)
    for box, which in counted[key]:
        ranks = [rank for index, group in enumerate(parts.values()) if index in which for rank, _ in group]
        yield Finding(name, "held in different parts" if ranks else "held by nobody", tuple(sorted(ranks)), box)


def _agreed(tensor: LogicalTensor) -> str:
    """What all holders must say alike."""
    shape = "" if tensor.scope is Scope.OWN else f" {list(tensor.shape)}"
    return f"{tensor.dtype}{shape} ({tensor.item_bytes} bytes each, {tensor.scope.value})"


def _undeclared(name: str, group: Sequence[Held]) -> Iterator[Finding]:
    """Ranks that hold the same part: as many as each of them says, where they know."""
    first, ranks = group[0][1], tuple(rank for rank, _ in group)
    declared = {tensor.copies for _, tensor in group}
    if declared not in ({len(group)}, {0}) and first.elements:
        said = " or ".join(map(str, sorted(declared)))
        box = next(first.boxes())[0]
        yield Finding(name, f"held {len(group)} times, its layout says {said}", ranks, box)
    if len({tensor.strides for _, tensor in group}) > 1 and first.scope is Scope.SAME:
        yield Finding(name, "in memory, replicas have their dimensions in different orders", ranks)


def _unkept(name: str, group: Sequence[Held]) -> Iterator[Finding]:
    """Bytes of a part that none of its holders keeps."""
    first, reached = group[0][1], 0
    for start, stop, _ in sorted(extent for _, tensor in group for extent in tensor.extents):
        if start > reached:
            break
        reached = max(reached, stop)
    if reached < first.local_bytes and first.elements:
        yield Finding(name, f"nobody keeps byte {reached} of {first.local_bytes}", tuple(rank for rank, _ in group))


def is_sound(tensor: LogicalTensor) -> bool:
    """Memory is addressed by these numbers: spans and extents must rise, and lie in what they are of."""
    if not len(tensor.shape) == len(tensor.axes) == len(tensor.strides):
        return False
    if min((*tensor.shape, *tensor.strides, *tensor.local_shape), default=0) < 0:
        return False
    if tensor.item_bytes < 1 or tensor.copies < 0:
        return False
    for length, axis in zip(tensor.shape, tensor.axes, strict=True):
        start = local = 0
        for span in axis.spans:
            if span.start < start or span.local < local or span.length < 1:
                return False
            start, local = span.start + span.length, span.local + span.length
        if start > length or local > axis.size:
            return False
    if any(extent.start < 0 or extent.stop <= extent.start or extent.offset < 0 for extent in tensor.extents):
        return False
    return all(before.stop <= after.start for before, after in pairwise(tensor.extents))
