"""Pure: which bytes lie on which node, so that any ``parity`` lost nodes of a group can be rebuilt.

Nodes form groups of consecutive positions. In a group of n, with m parity and k = n - m data chunks to a stripe,
there are n *rotations*: in rotation r the members r .. r+m-1 (mod n) keep parity and the other k data, so that
all carry the same load (RAID-5; REFT, arXiv 2310.12670). A lane's unit is cut into k segments, one for each
rotation in which its node keeps data, in order of rotation. A segment counts as padded with zeros to the
longest of its stripe; zeros are never sent.
"""

from __future__ import annotations

import msgspec

from ftrain_snapshot.errors import PlacementImpossible

ALIGNMENT_BYTES = 64
GROUP_SIZE_MAX = 8


def round_up(value: int, multiple: int) -> int:
    """The next multiple of ``multiple``, ``value`` itself included."""
    return -(-value // multiple) * multiple


def groups(nodes: int, parity: int, group_size_max: int = GROUP_SIZE_MAX) -> tuple[tuple[int, ...], ...]:
    """Positions in near-equal groups of at most ``group_size_max``, each larger than ``parity``.

    Where both cannot be had, groups grow beyond the maximum. Raises PlacementImpossible if even one group of
    all nodes is too small.
    """
    if nodes < 1 or parity < 0 or parity >= nodes:
        raise PlacementImpossible(f"{nodes} nodes cannot carry parity {parity}: it must be 0 to {nodes - 1}")
    count = max(1, min(-(-nodes // group_size_max), nodes // (parity + 1)))
    base, longer = divmod(nodes, count)
    sizes = [base + (i < longer) for i in range(count)]
    starts = [sum(sizes[:i]) for i in range(count)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


class Group(msgspec.Struct, frozen=True):
    """One group: members in order of position, and how many of each stripe's chunks are parity."""

    members: tuple[int, ...]
    parity: int

    @property
    def segments(self) -> int:
        """k: the segments of a unit, the data chunks of a stripe."""
        return len(self.members) - self.parity

    def parity_members(self, rotation: int) -> tuple[int, ...]:
        """Positions that keep the parity of ``rotation``."""
        n = len(self.members)
        return tuple(self.members[(rotation + i) % n] for i in range(self.parity))

    def data_members(self, rotation: int) -> tuple[int, ...]:
        """Positions that keep the data of ``rotation``."""
        held = self.parity_members(rotation)
        return tuple(p for p in self.members if p not in held)

    def data_rotations(self, position: int) -> tuple[int, ...]:
        """The rotations in which ``position`` keeps data: segment i of its units belongs to the i-th of them."""
        return tuple(r for r in range(len(self.members)) if position not in self.parity_members(r))

    def parity_rotations(self, position: int) -> tuple[int, ...]:
        """The rotations in which ``position`` keeps parity."""
        return tuple(r for r in range(len(self.members)) if position in self.parity_members(r))

    def segment_of(self, position: int, rotation: int) -> int:
        """Which segment of ``position``'s units belongs to ``rotation``."""
        return self.data_rotations(position).index(rotation)


def group_of(position: int, nodes: int, parity: int) -> Group:
    """The group in which ``position`` is coded."""
    return next(Group(g, parity) for g in groups(nodes, parity) if position in g)


def segment_bytes(unit_bytes: int, segments: int) -> int:
    """Length of a segment, padding included."""
    return round_up(-(-unit_bytes // segments), ALIGNMENT_BYTES)


def segment_spans(unit_bytes: int, segments: int) -> tuple[tuple[int, int], ...]:
    """(offset, length) of each segment without its padding; trailing ones may be short or empty."""
    size = segment_bytes(unit_bytes, segments)
    starts = (min(i * size, unit_bytes) for i in range(segments))
    return tuple((start, min(size, unit_bytes - start)) for start in starts)


def is_complete(have_data: set[int], have_parity: set[int], nodes: int, parity: int) -> bool:
    """Whether every stripe of every group has k of its chunks, so that all data can be read or decoded."""
    for members in groups(nodes, parity):
        group = Group(members, parity)
        for rotation in range(len(members)):
            data = have_data.intersection(group.data_members(rotation))
            if len(data) + len(have_parity.intersection(group.parity_members(rotation))) < group.segments:
                return False
    return True
