"""Pure: which snapshots exist for the job, and when the next may be captured into which slot.

Facts come in (a position has sealed, a position's parity is stored, a daemon came or went); nothing else does: no
clock, no socket. The *gate* runs in the daemon of position 0 and lets one snapshot be in flight at a time: a ticket
names a slot; who takes it writes there; the next ticket comes when that snapshot is protected, or will never be.
So at most one sealed snapshot is ever unprotected, and at most one sealed step is lost with a node.

What a generation starts from may have been captured in another world (its *origin*, worlds.py). Nobody here counts who
holds what of it; its slot is kept until a snapshot of this world is as safe as it will be, and let go then.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ftrain_snapshot.inventory import Holding
from ftrain_snapshot.pin import Pin
from ftrain_snapshot.status import Levels
from ftrain_snapshot.words import SnapshotId

SLOTS = 3
RECORDS_MAX = 64
"""Snapshots that the gate keeps facts of; of a job in order there are at most three, and what is left of old ones."""


class Word(msgspec.Struct, frozen=True):
    """What the gate's control word should say."""

    ticket: int
    slot: int
    """The slot that this ticket is for; -1: it has been used, or is void."""
    open: bool
    """Rank 0 may take it now."""
    floor: int = -1
    """The newest version that was in the slot before: what is said of it, or of older ones there, is stale."""


class Exposure:
    """How long the job has been exposed: open and closed by what is told, with the clock passed in."""

    def __init__(self) -> None:
        self.last_seconds = 0.0
        """How long the last such time took that is over."""
        self._since: float | None = None

    def update(self, exposed: bool, now: float) -> None:
        """It is so, or is not so, from now on. ``now`` in seconds of any steady clock."""
        if exposed and self._since is None:
            self._since = now
        elif not exposed and self._since is not None:
            self.last_seconds, self._since = now - self._since, None

    def seconds(self, now: float) -> float:
        """How long it has been so by now; 0: it is not."""
        return 0.0 if self._since is None else max(0.0, now - self._since)


class Record(msgspec.Struct):
    """What the gate knows of one snapshot."""

    sealed: set[int]
    stored: set[int]
    digests: dict[int, tuple[int, ...]]


class Gate:
    """The job's view of its snapshots, kept by the daemon of position 0 for one generation.

    Feed it facts (``arrived``, ``left``, ``sealed``, ``stored``, ``skip``, ``abandon``), in any order and repeatedly;
    then ``advance`` says what the control word should be and which snapshots all daemons must drop.
    """

    def __init__(
        self,
        *,
        nodes: int,
        parity: int,
        generation: int,
        restore: SnapshotId | None = None,
        origin: SnapshotId | None = None,
        word: Word = Word(0, -1, False),  # noqa: B008 - frozen
        pin: Pin | None = None,
    ) -> None:
        self._nodes = nodes
        self._parity = parity
        self._generation = generation
        self._restore = restore
        self._origin = origin
        self._kept: set[SnapshotId] = {origin} if origin is not None else set()
        """Snapshots of other worlds that some daemon keeps."""
        self._let_go: list[SnapshotId] = []
        self._records: dict[SnapshotId, Record] = {}
        self._ready: set[int] = set()
        self._ticket, self._slot = word.ticket, word.slot
        self._floor = {word.slot: word.floor}
        """For each slot the newest version that was in it before it was given out again: facts about it are stale."""
        self._current: SnapshotId | None = None
        self._abandoned: set[SnapshotId] = set()
        self._dropped: list[SnapshotId] = []
        self._start_given_up = False
        self._unprotected: SnapshotId | None = None
        """The newest snapshot whose protecting was abandoned."""
        self.pin = pin or Pin()
        """What is kept for storage."""

    # Facts.

    def arrived(
        self, position: int, holdings: Iterable[Holding], *, linked: bool, kept: Iterable[SnapshotId] = ()
    ) -> None:
        """A daemon is (newly) connected and says what it holds; ``linked``: it reaches all others of its group.

        ``kept``: what it has of other worlds.
        """
        if len(self._kept) < RECORDS_MAX:
            self._kept.update(s for s in kept if 0 <= s.slot < SLOTS)
        for record in self._records.values():
            record.sealed.discard(position)
            record.stored.discard(position)
        for holding in holdings:
            if holding.position == position and holding.data:
                self.sealed(position, holding.snapshot, ())
            if holding.position == position and holding.parity and not holding.damage:
                self.stored(position, holding.snapshot)
        (self._ready.add if linked else self._ready.discard)(position)
        self._interrupt()

    def left(self, position: int) -> None:
        """A daemon's connection is gone: what is in flight will not be protected."""
        self._ready.discard(position)
        self._interrupt()

    def sealed(self, position: int, snapshot: SnapshotId, digests: tuple[int, ...]) -> None:
        """All lanes of ``position`` are sealed; ``digests``: of each lane, or none if they are not known."""
        if (record := self._record(snapshot)) is not None:
            record.sealed.add(position)
            if digests:
                record.digests[position] = digests
            self._notice(snapshot)

    def stored(self, position: int, snapshot: SnapshotId) -> None:
        """The parity that ``position`` must keep is complete and verified."""
        if (record := self._record(snapshot)) is not None:
            record.stored.add(position)

    def skip(self, snapshot: SnapshotId) -> None:
        """A rank could not capture it: it will never be complete."""
        if not self._stale(snapshot):
            self._notice(snapshot)
            self._drop(snapshot)

    def abandon(self, snapshot: SnapshotId) -> None:
        """It will not be protected (a receive failed); it may still be sealed everywhere, and count as that."""
        if snapshot.generation == self._generation and not self._stale(snapshot):
            self._notice(snapshot)
            self._abandon(snapshot)

    def give_up_start(self) -> None:
        """The start's parity was not rebuilt in time: rather go on than take no snapshot at all."""
        self._start_given_up = True

    # Answers.

    def levels(self) -> Levels:
        """The newest version at each level."""
        sealed, protected = self._newest_sealed(), self._newest_protected()
        return Levels(sealed=sealed.version if sealed else None, protected=protected.version if protected else None)

    def newest_of_positions(self) -> tuple[int, ...]:
        """Of each position the newest version that it has sealed; -1: none."""
        newest = [-1] * self._nodes
        for snapshot, record in self._records.items():
            for position in record.sealed:
                newest[position] = max(newest[position], snapshot.version)
        return tuple(newest)

    @property
    def exposed(self) -> bool:
        """Whether one more loss than is covered is under way of being made good: the generation's start, or a snapshot
        whose protecting was abandoned, is not protected, nor is any newer one."""
        due = [s for s in (self._restore, self._origin, self._unprotected) if s is not None]
        protected = self._newest_protected()
        return bool(self._parity and due) and (protected is None or protected < max(due))

    def advance(self) -> tuple[Word, tuple[SnapshotId, ...]]:
        """What follows from the facts: the control word, and the snapshots to be dropped everywhere (once)."""
        self._drop_mismatched()
        self.pin.consider(self._newest_safe())
        if self._newest_safe() is not None:
            self._let_go += sorted(self._kept)
            self._kept.clear()
        everyone = len(self._ready) == self._nodes
        if everyone and self._slot == -1 and self._resolved():
            slot = self._free_slot()
            if slot is not None:
                self._give_out(slot)
        dropped, self._dropped = tuple(self._dropped), []
        word = Word(self._ticket, self._slot, everyone and self._slot != -1, self._floor.get(self._slot, -1))
        return word, dropped

    def let_go(self) -> list[SnapshotId]:
        """Snapshots of other worlds that nobody needs any more: what followed since this was asked last."""
        gone, self._let_go = self._let_go, []
        return gone

    @property
    def in_flight(self) -> bool:
        """Whether a ticket was used for a snapshot that is not yet as safe as it will be."""
        return self._current is not None and not self._resolved()

    def _give_out(self, slot: int) -> None:
        gone = [s for s in self._records if s.slot == slot] + [s for s in self._abandoned if s.slot == slot]
        self._floor[slot] = max([s.version for s in gone] + [self._floor.get(slot, -1)])
        for snapshot in gone:
            self._records.pop(snapshot, None)
            self._abandoned.discard(snapshot)
        given_up = sorted(s for s in self._kept if s.slot == slot)
        self._kept.difference_update(given_up)
        self._let_go += given_up
        self._ticket, self._slot, self._current = self._ticket + 1, slot, None

    def _resolved(self) -> bool:
        """Nothing is in flight: it is protected, or sealed everywhere and cannot be protected, or dropped."""
        if self._current is None:
            return self._start_is_safe()
        if self._current not in self._whole(sealed_only=True):
            return False
        if self._parity == 0 or self._current in self._abandoned:
            return True
        return self._current in self._whole(sealed_only=False)

    def _start_is_safe(self) -> bool:
        """What the generation started from is protected (again): else a lost node would cost it and the next one."""
        if self._restore is None or self._parity == 0 or self._start_given_up:
            return True
        sealed, protected = self._newest_sealed(), self._newest_protected()
        return (protected is not None and protected >= self._restore) or (sealed is not None and sealed > self._restore)

    def _free_slot(self) -> int | None:
        """The slot with the oldest content, of those that nobody may need any more.

        Kept are the newest protected and the newest sealed snapshot, and the one that this generation started
        from until a newer one is protected; and what is pinned, unless no other slot is left. None: wait (the
        start's parity is being rebuilt). Of other worlds the origin is kept, and older ones while there is room.
        """
        sealed, protected, safe = self._newest_sealed(), self._newest_protected(), self._newest_safe()
        kept = {s.slot for s in (sealed, protected) if s is not None}
        if self._restore in self._records and (safe is None or self._restore > safe):
            kept.add(self._restore.slot)
        if self._origin in self._kept:
            kept.add(self._origin.slot)
        whole = self._whole(sealed_only=True)
        ages = {slot: max([s.version for s in whole if s.slot == slot], default=-1) for slot in range(SLOTS)}
        pinned = self.pin.snapshot
        free = [slot for slot in range(SLOTS) if slot not in kept]
        older = {s.slot for s in self._kept}
        free = [slot for slot in free if slot not in older] or free
        unpinned = [slot for slot in free if pinned is None or slot != pinned.slot]
        if free and not unpinned:
            self.pin.give_way()
        return min(unpinned or free, key=ages.__getitem__, default=None)

    def _whole(self, *, sealed_only: bool) -> list[SnapshotId]:
        n = self._nodes
        return [s for s, r in self._records.items() if len(r.sealed) == n and (sealed_only or len(r.stored) == n)]

    def _newest_sealed(self) -> SnapshotId | None:
        return max(self._whole(sealed_only=True), default=None)

    def _newest_safe(self) -> SnapshotId | None:
        """The newest one of this world that is as safe in memory as it will be."""
        return self._newest_protected() if self._parity else self._newest_sealed()

    def _newest_protected(self) -> SnapshotId | None:
        return max(self._whole(sealed_only=False), default=None) if self._parity else None

    def _stale(self, snapshot: SnapshotId) -> bool:
        return not 0 <= snapshot.slot < SLOTS or snapshot.version <= self._floor.get(snapshot.slot, -1)

    def _record(self, snapshot: SnapshotId) -> Record | None:
        if self._stale(snapshot):
            return None
        if snapshot not in self._records:
            for older in [s for s in self._records if s.slot == snapshot.slot and s < snapshot]:
                del self._records[older]
            if len(self._records) >= RECORDS_MAX:
                del self._records[min(self._records)]
            self._records[snapshot] = Record(set(), set(), {})
        return self._records[snapshot]

    def _notice(self, snapshot: SnapshotId) -> None:
        """Facts about a new snapshot of this generation: the ticket has been taken for it."""
        if snapshot.generation != self._generation or (self._current and snapshot <= self._current):
            return
        self._current = snapshot
        if snapshot.slot == self._slot:
            self._slot = -1

    def _interrupt(self) -> None:
        if self._current is not None:
            self._abandon(self._current)

    def _abandon(self, snapshot: SnapshotId) -> None:
        same_slot = {s for s in self._abandoned if s.slot == snapshot.slot} | {snapshot}
        self._abandoned = (self._abandoned - same_slot) | {max(same_slot)}
        self._unprotected = max(snapshot, self._unprotected or snapshot)

    def _drop(self, snapshot: SnapshotId) -> None:
        self._records.pop(snapshot, None)
        self._abandoned.discard(snapshot)
        self._floor[snapshot.slot] = max(self._floor.get(snapshot.slot, -1), snapshot.version)
        self._dropped.append(snapshot)
        if self._current == snapshot:
            self._current = None
        if self._unprotected == snapshot:
            self._unprotected = None
        self.pin.release(snapshot)

    def _drop_mismatched(self) -> None:
        """Ranks that disagree on the layout of the replicated state did not capture one job's state."""
        for snapshot, record in list(self._records.items()):
            if len({digest for digests in record.digests.values() for digest in digests}) > 1:
                self._drop(snapshot)
