"""What a node holds of which snapshots, and which chunks of it are damaged, as it tells others."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ftrain_snapshot.words import Count, SnapshotId

DAMAGES_MAX = 1024
"""Ranges of damage that a node tells of one by one."""


class Damage(msgspec.Struct, frozen=True, array_like=True):
    """Chunks that are missing or damaged on a node: its part, data or parity, of stripes ``first`` to ``stop``."""

    lane: Count
    rotation: Count
    first: Count
    stop: Count
    """One past the last stripe."""


Damages = Annotated[tuple[Damage, ...], msgspec.Meta(max_length=DAMAGES_MAX)]


class Holding(msgspec.Struct, frozen=True):
    """What one node holds of one snapshot."""

    snapshot: SnapshotId
    position: Count
    """The position whose share this is."""
    data: bool
    """Every lane of this position is sealed here."""
    parity: bool
    """This position's parity is complete here."""
    data_bytes: Count = 0
    parity_bytes: Count = 0
    damage: Damages = ()
    """Chunks of both that are known to be damaged; the rest is there."""


Holdings = Annotated[tuple[Holding, ...], msgspec.Meta(max_length=16)]
"""Of a node's three slots: what is in them, and whose parity is."""


class Inventory(msgspec.Struct, frozen=True):
    """All that a node holds, read from its memory when asked."""

    holdings: Holdings = ()
    sealed: tuple[int, ...] = ()
    """Of each position the newest version that it said it has sealed; -1: none. Only the gate's daemon knows."""
