"""Pure: which snapshots can be read or rebuilt from what nodes say they hold, and why others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.placement import Group, Groups, formed_groups, is_complete
from ftrain_snapshot.words import SnapshotId


def newest_complete(
    holdings: Mapping[int, Sequence[Holding]], grouping: Groups | int, parity: int
) -> SnapshotId | None:
    """The newest snapshot that can be read or decoded from what the positions in ``holdings`` hold.

    ``grouping``: the groups, or a number of unlabelled nodes.
    """
    for snapshot in sorted(_seen(holdings), reverse=True):
        whole = is_complete(*_having(holdings, snapshot), grouping, parity)
        if whole and not _fatal_damage(holdings, snapshot, grouping, parity):
            return snapshot
    return None


def explain(
    holdings: Mapping[int, Sequence[Holding]],
    grouping: Groups | int,
    parity: int,
    snapshot: SnapshotId | None = None,
) -> str:
    """For an operator: why a snapshot cannot be rebuilt, and with which nodes back it could be.

    ``snapshot``: which; by default the newest that every position in ``holdings`` still has its data of (what is
    missing of that one went with the absent nodes), or else the newest of which anything is left.
    """
    if snapshot is None:
        seen = _seen(holdings)
        if not seen:
            return "No snapshot can be rebuilt: no node that is left holds any part of one."
        present = set(holdings)
        whole = [s for s in seen if present and _having(holdings, s)[0] >= present]
        snapshot = max(whole or seen)
    data, stored = _having(holdings, snapshot)
    name = f"Snapshot {snapshot.version} (generation {snapshot.generation})"
    formed = formed_groups(grouping, parity)
    missing = sorted({p for members in formed for p in members} - data)
    if is_complete(data, stored, formed, parity):
        if damaged := _fatal_damage(holdings, snapshot, formed, parity):
            lost = f"the bytes of {_positions(damaged)} are missing or damaged in one stripe"
            return f"{name} cannot be rebuilt: {lost}, and parity {parity} replaces at most {parity}."
        if not missing:
            return f"{name} is complete: every position holds its data."
        return f"{name} is complete: the data of {_positions(missing)} can be rebuilt from parity."
    ways = [_way_back(Group(g, parity), data, stored) for g in formed]
    return (
        f"{name} cannot be rebuilt: the data of {_positions(missing)} {'is' if len(missing) == 1 else 'are'} "
        f"missing, and parity {parity} replaces at most {parity} lost node{'s' * (parity != 1)} of a group. "
        f"It would be complete with {', and '.join(w for w in ways if w)} back."
    )


def _seen(holdings: Mapping[int, Sequence[Holding]]) -> set[SnapshotId]:
    return {h.snapshot for held in holdings.values() for h in held if h.data or h.parity}


def _having(holdings: Mapping[int, Sequence[Holding]], snapshot: SnapshotId) -> tuple[set[int], set[int]]:
    """Positions that hold their data, and their parity, of ``snapshot``."""
    mine = [h for p, held in holdings.items() for h in held if h.snapshot == snapshot and h.position == p]
    return {h.position for h in mine if h.data}, {h.position for h in mine if h.parity}


def _fatal_damage(
    holdings: Mapping[int, Sequence[Holding]], snapshot: SnapshotId, grouping: Groups | int, parity: int
) -> list[int]:
    """Positions that lack their part of one stripe, of which too little is left; empty if there is no such stripe."""
    damage = [
        (p, d) for p, held in holdings.items() for h in held if h.snapshot == snapshot and h.position == p
        for d in h.damage
    ]  # fmt: skip
    if not damage:
        return []
    data, stored = _having(holdings, snapshot)
    for group in [Group(members, parity) for members in formed_groups(grouping, parity)]:
        for _, at in damage:  # most overlap where one of them begins
            held = data.intersection(group.data_members(at.rotation % len(group.members)))
            held |= stored.intersection(group.parity_members(at.rotation % len(group.members)))
            bad = {
                p for p, d in damage if (d.lane, d.rotation) == (at.lane, at.rotation) and d.first <= at.first < d.stop
            }
            if bad.intersection(held) and len(held - bad) < group.data:
                return sorted(bad | (set(group.members) - held))
    return []


def _way_back(group: Group, data: set[int], stored: set[int]) -> str:
    """The fewest positions of the group that must come back, with all they held."""
    away = [p for p in group.members if p not in data or p not in stored]
    for count in range(len(away) + 1):
        ways = [w for w in combinations(away, count) if _decodable(group, data.union(w), stored.union(w))]
        if ways and count:
            options = sorted({p for way in ways for p in way})
            if len(options) == count:
                return _positions(options)
            if count == 1:
                return f"position {', '.join(map(str, options[:-1]))} or {options[-1]}"
            if len(ways) == len(list(combinations(options, count))):
                return f"any {count} of {_positions(options)}"
            return " or ".join(_positions(way) for way in ways)
        if ways:
            break
    return ""


def _decodable(group: Group, data: set[int], stored: set[int]) -> bool:
    return all(
        len(data.intersection(group.data_members(r))) + len(stored.intersection(group.parity_members(r))) >= group.data
        for r in range(len(group.members))
    )


def _positions(positions: Iterable[int]) -> str:
    names = [str(p) for p in positions]
    if len(names) == 1:
        return f"position {names[0]}"
    return f"positions {', '.join(names[:-1])} and {names[-1]}"
