"""Pure: which bytes lie on which node, so that any ``parity`` lost nodes of a group can be rebuilt.

Nodes form groups. In a group of n, with m parity and k = n - m data chunks to a stripe, there are n *rotations*: in
rotation r the members r .. r+m-1 (mod n, by index in the group) keep parity and the other k data, so that all carry
the same load (RAID-5; REFT, arXiv 2310.12670). A lane's unit is cut into chunks; chunk c belongs to the (c mod k)-th
rotation in which its node keeps data, and there to stripe c // k. A chunk that is not there, because its unit is
shorter than another's, counts as zeros, which are never sent; so members may differ in size.

Groups are dealt over failure domains (host, rack, switch): nodes are put in order of domain and dealt out like cards.
A domain of d nodes then has floor(d/G) or ceil(d/G) of them in each of G groups, and no grouping has less in its
worst group; sizes differ by at most one. So what dealing cannot do, nothing can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise

import msgspec

from ftrain_snapshot.errors import PlacementImpossible

ALIGNMENT_BYTES = 64
GROUP_SIZE_MAX = 8

Groups = tuple[tuple[int, ...], ...]


def round_up(value: int, multiple: int) -> int:
    """The next multiple of ``multiple``, ``value`` itself included."""
    return -(-value // multiple) * multiple


def groups(domains: Sequence[str] | int, parity: int, group_size_max: int = GROUP_SIZE_MAX) -> Groups:
    """Positions 0..n-1 in near-equal groups, each larger than ``parity``, over distinct failure domains.

    ``domains[p]`` labels the failure domain of position p's node; "" is a domain of its own; an int stands for that
    many unlabelled nodes. Groups hold at most ``group_size_max`` positions (more, where there is no other way), and
    are smaller where only that keeps the members of each in distinct domains. Where even that does not, a group has at
    most ``parity`` members in one domain, so that any one domain may be lost.

    Raises PlacementImpossible if one group of all nodes is too small for the parity, or if the loss of one domain
    would be the loss of more than ``parity`` members, whatever the grouping; it says what would be possible.
    """
    labels = ("",) * domains if isinstance(domains, int) else tuple(domains)
    nodes = len(labels)
    if parity < 0 or parity >= nodes:
        raise PlacementImpossible(f"{nodes} nodes cannot carry parity {parity}: it must be 0 to {nodes - 1}")
    most = nodes // (parity + 1)
    count = min(-(-nodes // group_size_max), most)
    largest = max(_counts(labels).values(), default=1)
    if parity == 0 or largest == 1:
        return _runs(nodes, count)
    if largest > parity * most:
        raise PlacementImpossible(_refusal(labels, parity))
    apart = largest if largest <= most else -(-largest // parity)
    return _dealt(labels, max(count, apart))


def check_groups(formed: Groups, nodes: int, parity: int) -> None:
    """Raises PlacementImpossible unless each position is in one group, and each group is larger than ``parity``."""
    if sorted(chain.from_iterable(formed)) != list(range(nodes)) or any(len(members) <= parity for members in formed):
        raise PlacementImpossible(
            f"groups {formed} are not those of {nodes} nodes with parity {parity}: each position belongs into one "
            f"group, and each group has more than {parity} members"
        )


def group_of(position: int, grouping: Groups | int, parity: int) -> Group:
    """The group in which ``position`` is coded; ``grouping``: what ``groups`` gave, or a number of unlabelled nodes."""
    return next(Group(members, parity) for members in formed_groups(grouping, parity) if position in members)


def is_complete(have_data: set[int], have_parity: set[int], grouping: Groups | int, parity: int) -> bool:
    """Whether every stripe of every group has k of its chunks, so that all data can be read or decoded."""
    for members in formed_groups(grouping, parity):
        group = Group(members, parity)
        for rotation in range(len(members)):
            data = have_data.intersection(group.data_members(rotation))
            if len(data) + len(have_parity.intersection(group.parity_members(rotation))) < group.data:
                return False
    return True


class Group(msgspec.Struct, frozen=True):
    """One group: members in order of position, and how many of each stripe's chunks are parity."""

    members: tuple[int, ...]
    parity: int

    @property
    def data(self) -> int:
        """k: the data chunks of a stripe, and in how many rotations a member keeps data."""
        return len(self.members) - self.parity

    def parity_members(self, rotation: int) -> tuple[int, ...]:
        """Positions that keep the parity of ``rotation``, in order of parity row."""
        return _parity_members(self.members, self.parity, rotation)

    def data_members(self, rotation: int) -> tuple[int, ...]:
        """Positions that keep the data of ``rotation``, in group order: their columns in the generator."""
        return _data_members(self.members, self.parity, rotation)

    def data_rotations(self, position: int) -> tuple[int, ...]:
        """The rotations in which ``position`` keeps data, ascending: its chunks go round them."""
        return _rotations(self.members, self.parity, position)[0]

    def parity_rotations(self, position: int) -> tuple[int, ...]:
        """The rotations in which ``position`` keeps parity, ascending."""
        return _rotations(self.members, self.parity, position)[1]

    def row_of(self, position: int, rotation: int) -> int:
        """Which parity row ``position`` keeps in ``rotation``. Raises ValueError if it keeps data there."""
        return self.parity_members(rotation).index(position)

    def rotation_of(self, position: int, chunk: int) -> int:
        """The rotation to which ``position``'s chunk number ``chunk`` belongs."""
        rotations = self.data_rotations(position)
        return rotations[chunk % len(rotations)]

    def stripe_of(self, chunk: int) -> int:
        """Which stripe of its rotation a chunk belongs to."""
        return chunk // self.data

    def chunk_of(self, position: int, rotation: int, stripe: int) -> int:
        """``position``'s chunk in that stripe. Raises ValueError if it keeps parity there."""
        return stripe * self.data + self.data_rotations(position).index(rotation)


# Asked for each chunk of each snapshot, of a handful of groups: looked up, not computed again.


@lru_cache(maxsize=4096)
def _parity_members(members: tuple[int, ...], parity: int, rotation: int) -> tuple[int, ...]:
    return tuple(members[(rotation + i) % len(members)] for i in range(parity))


@lru_cache(maxsize=4096)
def _data_members(members: tuple[int, ...], parity: int, rotation: int) -> tuple[int, ...]:
    held = _parity_members(members, parity, rotation)
    return tuple(p for p in members if p not in held)


@lru_cache(maxsize=4096)
def _rotations(members: tuple[int, ...], parity: int, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those with data and those with parity of ``position``. Raises ValueError if it is not a member."""
    if position not in members:
        raise ValueError(f"position {position} is not in group {members}")
    every = range(len(members))
    held = tuple(r for r in every if position in _parity_members(members, parity, r))
    return tuple(r for r in every if r not in held), held


def formed_groups(grouping: Groups | int, parity: int) -> Groups:
    """These groups; of a number of nodes, those that they have without labels."""
    return groups(grouping, parity) if isinstance(grouping, int) else grouping


def _counts(labels: Sequence[str]) -> Counter[str]:
    return Counter(label for label in labels if label)


def _runs(nodes: int, count: int) -> Groups:
    base, longer = divmod(nodes, count)
    starts = [i * base + min(i, longer) for i in range(count + 1)]
    return tuple(tuple(range(start, end)) for start, end in pairwise(starts))


def _dealt(labels: Sequence[str], count: int) -> Groups:
    # Labels in order of their first position, and nodes without one where they stand: the same on every node.
    first = {label: p for p, label in reversed(list(enumerate(labels))) if label}
    order = sorted(range(len(labels)), key=lambda p: (first.get(labels[p], p), p))
    return tuple(sorted(tuple(sorted(order[i::count])) for i in range(count)))


def _refusal(labels: Sequence[str], parity: int) -> str:
    nodes, counts = len(labels), _counts(labels)
    name, largest = counts.most_common(1)[0]
    room = parity * (nodes // (parity + 1))
    found = ", ".join(f"{label} {count}" for label, count in counts.most_common())
    alone = sum(not label for label in labels)
    enough = [p for p in range(1, nodes) if largest <= p * (nodes // (p + 1))]
    instead = next((p for p in enough if p > parity), next(reversed(enough), None))
    return (
        f"parity {parity} cannot make up for the loss of failure domain {name!r}: it has {largest} of {nodes} nodes, "
        f"at most {room} may be in one domain (nodes by domain: {found}{f', unlabelled {alone}' if alone else ''}): "
        + (f"use --parity {instead}, or " if instead else "")
        + f"spread the nodes evenly over {-(-nodes // room)} domains or more"
    )
