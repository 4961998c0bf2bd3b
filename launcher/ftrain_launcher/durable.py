"""Pure: which snapshot is on its way to storage, and which positions have still to write their part.

The gate pins a protected snapshot when one is due. Every node then writes its part; position 0 finishes the
checkpoint once it finds the others' parts beside its own, so that its word is the last one.
"""

from __future__ import annotations

from ftrain_snapshot.messages import SnapshotId


class DurableWrites:
    """One job's writes, one at a time."""

    def __init__(self) -> None:
        self.newest: int | None = None
        """The newest version on storage."""
        self.writing: SnapshotId | None = None
        self._left: set[int] = set()

    def begin(self, pinned: SnapshotId | None, positions: int) -> bool:
        """Whether to write what the gate has pinned now: not if that is under way, or done."""
        if pinned is None or self.writing is not None or (self.newest is not None and pinned.version <= self.newest):
            return False
        self.writing, self._left = pinned, set(range(positions))
        return True

    def wrote(self, position: int, snapshot: SnapshotId) -> bool:
        """A position has written its part; True if the checkpoint is complete with it."""
        if snapshot != self.writing:
            return False
        self._left.discard(position)
        if self._left:
            return False
        self.newest, self.writing = snapshot.version, None
        return True

    def give_up(self) -> SnapshotId | None:
        """A part cannot be written, or a new generation begins: what was being written, if anything."""
        abandoned, self.writing = self.writing, None
        self._left.clear()
        return abandoned
