"""Pure: which chunks make up for a lost one, and from whom to fetch them.

A stripe has n chunks on n members, and any k of them give every other. So for each stripe of a lost range: who is bad
there (its part is missing or damaged), whose part is empty (a shorter unit: zeros, which cost nothing), who can be
asked; and of those that can, the k that have least to send already. Ranges are cut where any of this changes, so that
one piece has the same sources throughout. A stripe with too few sources either waits for a member that has not spoken
yet, or can never be rebuilt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Annotated

import msgspec

from ftrain_snapshot.codec.generator import decode_rows
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.manifest import CHUNK_BYTES, chunk_bytes, chunk_count
from ftrain_snapshot.placement import Group
from ftrain_snapshot.words import Count

STRIPES_MAX = 1 << 40
"""Past the end of any unit: the end of a range whose own end is not known yet."""


class Shape(msgspec.Struct, frozen=True):
    """The stripes of one lane: how long each member's part of them is."""

    group: Group
    unit_bytes: Mapping[int, int]
    """By position, of all members."""

    def stripes(self, position: int, rotation: int) -> int:
        """How many stripes of the rotation ``position`` has a part of, data or parity."""
        rotations = self.group.data_rotations(position)
        if rotation not in rotations:
            return max(self.stripes(p, rotation) for p in self.group.data_members(rotation))
        chunks = chunk_count(self.unit_bytes[position])
        return max(0, -(-(chunks - rotations.index(rotation)) // self.group.data))

    def length(self, position: int, rotation: int, stripe: int) -> int:
        """Length of its part of one stripe; 0: it has none. Parity is as long as the longest data."""
        if rotation not in self.group.data_rotations(position):
            return max(self.length(p, rotation, stripe) for p in self.group.data_members(rotation))
        return chunk_bytes(self.unit_bytes[position], self.group.chunk_of(position, rotation, stripe))

    def parity_bytes(self, rotation: int) -> int:
        """Length of the parity of a rotation: all its chunks, of which only the last may be short."""
        last = max(self.stripes(p, rotation) for p in self.group.data_members(rotation)) - 1
        longest = max(self.length(p, rotation, last) for p in self.group.data_members(rotation))
        return last * CHUNK_BYTES + longest if last >= 0 else 0


class Source(msgspec.Struct, frozen=True, array_like=True):
    """A member's part, and what it is multiplied with."""

    position: Count
    coefficient: Annotated[int, msgspec.Meta(ge=0, le=255)]


class Piece(msgspec.Struct, frozen=True):
    """Neighbouring stripes that are rebuilt from the same sources."""

    lane: int
    rotation: int
    first: int
    stop: int
    sources: tuple[Source, ...]
    """None: all zeros."""


class Stuck(msgspec.Struct, frozen=True):
    """A range that cannot be rebuilt now."""

    damage: Damage
    lost: tuple[int, ...]
    """Positions whose part is missing or damaged."""
    waits_for: tuple[int, ...]
    """Positions that could help, and have not been heard of; none: it cannot be rebuilt at all."""


class Sight(msgspec.Struct, frozen=True):
    """What one node knows of its group, of one snapshot."""

    generator: str
    shapes: Mapping[int, Shape]
    """By lane."""
    bad: Mapping[int, Sequence[Damage]]
    """What each position lacks."""
    able: Collection[int]
    """Positions that can be asked (this node itself included)."""


def pieces(
    sight: Sight,
    position: int,
    wanted: Iterable[Damage],
    load: dict[int, int],
    stripes_max: int,
    *,
    whole: bool = True,
) -> Iterator[Piece | Stuck]:
    """How to rebuild ``position``'s part of the ``wanted`` stripes, in pieces of at most ``stripes_max``.

    ``load`` is what each position has been asked for already, in chunks; it is added to. Evaluated as it is consumed,
    so that the choice follows the load. ``whole=False``: where ``position`` itself can be asked and is sound, that is
    the piece (a plain read).
    """
    for want in wanted:
        shape = sight.shapes[want.lane]
        stop = min(want.stop, shape.stripes(position, want.rotation))
        cuts = _cuts(sight, shape, want.lane, want.rotation, want.first, stop)
        for start, end in pairwise(cuts):
            for first in range(start, end, stripes_max):
                damage = Damage(want.lane, want.rotation, first, min(end, first + stripes_max))
                chosen = _choose(sight, shape, position, damage, load, whole)
                if isinstance(chosen, Stuck):
                    yield Stuck(Damage(want.lane, want.rotation, start, end), chosen.lost, chosen.waits_for)
                    break
                for source in chosen:
                    load[source.position] = load.get(source.position, 0) + damage.stop - damage.first
                yield Piece(damage.lane, damage.rotation, damage.first, damage.stop, chosen)


def impossible(sight: Sight, position: int, wanted: Iterable[Damage]) -> str:
    """Why some of the wanted stripes can never be rebuilt; empty if they may be."""
    for piece in pieces(sight, position, wanted, {}, STRIPES_MAX):
        if isinstance(piece, Stuck) and not piece.waits_for:
            names = ", ".join(map(str, sorted({position, *piece.lost})))
            parity = sight.shapes[piece.damage.lane].group.parity
            return (
                f"lane {piece.damage.lane}: the bytes of positions {names} are missing in one stripe, "
                f"parity replaces {parity if parity > 1 else 'one'}"
            )
    return ""


def _cuts(sight: Sight, shape: Shape, lane: int, rotation: int, first: int, stop: int) -> list[int]:
    """Where in the range anything changes, its ends included."""
    cuts = {first, stop}
    for damages in sight.bad.values():
        for d in damages:
            if (d.lane, d.rotation) == (lane, rotation):
                cuts |= {d.first, d.stop}
    cuts |= {shape.stripes(p, rotation) for p in shape.group.members}
    return sorted(c for c in cuts if first <= c <= stop) if first < stop else []


def _choose(
    sight: Sight, shape: Shape, position: int, damage: Damage, load: Mapping[int, int], whole: bool
) -> tuple[Source, ...] | Stuck:
    group, rotation = shape.group, damage.rotation
    data = group.data_members(rotation)
    members = (*data, *group.parity_members(rotation))  # in the generator's order
    empty = [p for p in members if p != position and damage.first >= shape.stripes(p, rotation)]
    lost = [p for p in members if p not in empty and p != position and _is_bad(sight, p, damage)]
    able = [p for p in members if p in sight.able and p not in (position, *empty, *lost)]
    if not whole and position in sight.able and not _is_bad(sight, position, damage):
        return (Source(position, 1),)
    others = [p for p in members if p not in (position, *empty, *lost, *able)]
    if position not in data:  # parity: only from the data, whose checksums all members know
        able, others, lost = ([p for p in some if p in data] for some in (able, others, lost))
        if lost or others:
            return Stuck(damage, tuple(lost), (*lost, *others))
    needed = group.data - len([p for p in empty if p in data])
    empty = [p for p in empty if p in data]
    if len(able) < needed:
        return Stuck(damage, tuple(lost), tuple(others) if len(able) + len(others) >= needed else ())
    used = sorted(sorted(able, key=lambda p: (load.get(p, 0), members.index(p)))[:needed], key=members.index)
    present = sorted([*used, *empty], key=members.index)
    (row,) = decode_rows(
        sight.generator, group.data, group.parity, [members.index(p) for p in present], [members.index(position)]
    )
    found = (Source(p, c) for p, c in zip(present, row, strict=True) if p in used and c)
    return tuple(found)


def _is_bad(sight: Sight, position: int, damage: Damage) -> bool:
    return any(
        (d.lane, d.rotation) == (damage.lane, damage.rotation) and d.first < damage.stop and damage.first < d.stop
        for d in sight.bad.get(position, ())
    )
