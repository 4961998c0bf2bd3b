"""Pure: whose share each snapshot is that a node keeps, where the number of the job's nodes may change.

All generations with the same positions, groups and parity are one *world*; another number of nodes begins another. A
snapshot belongs to the world of its generation. What a new world starts from was captured in another one (its
*origin*): it is kept under the position that the node had there until a snapshot of the new world is safe, and with it
the origin before that, as long as there is room: if nothing of the new world becomes safe, there is still that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.inventory import DAMAGES_MAX, Damage, Holding
from ftrain_snapshot.ledger import SLOTS
from ftrain_snapshot.manifest import ParityDescriptor
from ftrain_snapshot.membership import Membership, Origin
from ftrain_snapshot.placement import Group, check_groups, group_of
from ftrain_snapshot.words import Number, SnapshotId

NODES_MAX = 1 << 16
"""Nodes of a world: a number beyond is nonsense."""


class Seat(msgspec.Struct, frozen=True):
    """A node's place in one world."""

    position: int
    group: Group

    def holding(
        self,
        snapshot: SnapshotId,
        units: Mapping[int, int],
        parity: Sequence[ParityDescriptor],
        damage: tuple[Damage, ...],
        lanes: int,
    ) -> Holding | None:
        """What counts of a snapshot of that world; None: nothing. ``units``: lengths of what is sealed, by lane."""
        wanted = lanes * len(self.group.parity_rotations(self.position))
        data, kept = len(units) == lanes, 0 < wanted == len(parity)
        if not (data or kept) or len(damage) > DAMAGES_MAX:
            return None
        sizes = sum(units.values()), sum(p.parity_bytes for p in parity)
        return Holding(snapshot, self.position, data, kept, *sizes, damage)


class Worlds(msgspec.Struct, frozen=True):
    """What a node must know of worlds; kept in a file for the next daemon."""

    membership: Membership
    """The generation that it serves."""
    since: Number = -1
    """The first generation of its world, as far as is known here: what is older is of another one."""
    kept: tuple[Origin, ...] = ()
    """Snapshots of other worlds that may still be needed, oldest first; ``position`` is this node's, -1: none."""

    def origin(self, snapshot: SnapshotId) -> Origin | None:
        """The world of a snapshot that is kept although it is of another one."""
        return next((origin for origin in self.kept if origin.snapshot == snapshot), None)

    def is_ours(self, snapshot: SnapshotId) -> bool:
        """Whether the world that is served captured it."""
        return self.origin(snapshot) is None and snapshot.generation >= self.since


def is_same_share(old: Membership | None, new: Membership) -> bool:
    """Whether what a node holds as a member of ``old`` is its share in ``new``, too; else it is of no use there."""
    if old is None or new.origin is not None:
        return False
    if (old.position, old.lanes, old.parity) != (new.position, new.lanes, new.parity):
        return False
    return len(old.peers) == len(new.peers) and _group(old) == _group(new)


def follow(old: Worlds | None, new: Membership) -> Worlds:
    """What a node keeps, and of which worlds that is, when it is told of a generation (again)."""
    if new.resumed and old is not None and old.membership.generation == new.generation:
        return msgspec.structs.replace(old, membership=new)
    before = old.kept if old is not None else ()
    start = new.origin.snapshot if new.origin is not None else new.restore
    olds = {origin.snapshot: origin for origin in (*before, new.older) if origin is not None}
    older = tuple(olds[each] for each in sorted(olds) if start is not None and each < start)[-1:]
    if new.origin is not None:
        return Worlds(new, new.generation, (*older, new.origin))
    if old is not None and is_same_share(old.membership, new):
        return Worlds(new, old.since, older)
    if new.resumed:
        return Worlds(new, -1, older)  # no record of what this generation kept: all that is here counts
    return Worlds(new, new.generation if start is None else start.generation, older)


def seat_of(world: Membership | Origin) -> Seat | None:
    """The node's place there; None if it had none."""
    if world.position < 0:
        return None
    return Seat(world.position, group_of(world.position, world.grouping, world.parity))


def check_origin(membership: Membership) -> None:
    """Raises PlacementImpossible if what a generation starts from cannot be of any world, or of its own."""
    for origin in (membership.origin, membership.older):
        if origin is not None:
            _check(membership, origin)


def _check(membership: Membership, origin: Origin) -> None:
    positions = [peer.position for peer in origin.holders]
    reason = ""
    if membership.restore is not None:
        reason = "a generation starts from a snapshot of its own world or from one of another, not from both"
    elif not origin.parity < origin.nodes <= NODES_MAX:
        reason = f"{origin.nodes} nodes with parity {origin.parity} are no world"
    elif not 0 <= origin.snapshot.slot < SLOTS or origin.snapshot.generation >= membership.generation:
        reason = f"{origin.snapshot} was not captured before generation {membership.generation}"
    elif len(set(positions)) < len(positions) or any(p >= origin.nodes for p in positions):
        reason = f"holders {positions} are not positions of a world of {origin.nodes} nodes"
    elif origin.position >= origin.nodes:
        reason = f"position {origin.position} is not one of a world of {origin.nodes} nodes"
    if reason:
        raise PlacementImpossible(reason)
    if origin.groups:
        check_groups(origin.groups, origin.nodes, origin.parity)


def _group(membership: Membership) -> Group:
    return group_of(membership.position, membership.grouping, membership.parity)
