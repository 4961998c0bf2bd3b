"""Parity that need not be made: that of stripes in which nothing has changed since another snapshot kept here.

What has changed is told by the checksums that the sources describe, however it came about that they did not send it.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftrain_snapshot.assembly import Part
from ftrain_snapshot.manifest import Catalog, UnitDescriptor, chunk_bytes
from ftrain_snapshot.node import Node
from ftrain_snapshot.words import SnapshotId


class Unchanged:
    """Other snapshots with parity on record here of the same lane and rotation, newest first."""

    def __init__(self, node: Node, catalog: Catalog, part: Part, units: Mapping[int, UnitDescriptor]) -> None:
        """``catalog``: of the snapshot whose parity is wanted; ``units``: of all the part's sources, by position."""
        self._store, self._group = node.store, node.group
        self._snapshot, self._part, self._units = catalog.snapshot, part, units
        self._others: list[tuple[SnapshotId, dict[int, UnitDescriptor]]] = []
        for other in node.store.catalogs():
            parity = other.parity_of(part.lane, part.rotation)
            theirs = {p: u for p in part.columns if (u := other.unit(p, part.lane)) is not None}
            same = parity is not None and node.codec is not None and parity.generator == node.codec.generator
            if other is not catalog and same and len(theirs) == len(part.columns):
                self._others.append((other.snapshot, theirs))

    def keep(self, stripe: int) -> bool:
        """Take over the stripe's parity from a snapshot in which all its sources were the same, if there is one."""
        lane, rotation = self._part.lane, self._part.rotation
        chunks = {p: self._group.chunk_of(p, rotation, stripe) for p in self._part.columns}
        return any(
            all(_is_same(self._units[p], theirs[p], chunk) for p, chunk in chunks.items())
            and self._store.keep_parity(self._snapshot, lane, rotation, stripe, reference)
            for reference, theirs in self._others
        )


def _is_same(unit: UnitDescriptor, other: UnitDescriptor, chunk: int) -> bool:
    length = chunk_bytes(unit.header.unit_bytes, chunk)
    if length != chunk_bytes(other.header.unit_bytes, chunk):
        return False
    return length == 0 or unit.sums[8 * chunk : 8 * chunk + 8] == other.sums[8 * chunk : 8 * chunk + 8]
