"""Reads again what is stored, compares it with its checksums, and has what is wrong rebuilt in its place.

Memory flips bits, and nobody looks at a snapshot before it is needed. So all of it, data and parity of every snapshot
kept here, is read slowly in the background: a slice of 8 MiB, then a rest of a hundred times as long, so that it takes
a hundredth of a core; it waits while something is being restored or protected, though not for ever. On request it is
read at once (``ftrain snapshots --verify``). A chunk that is wrong is an erasure like a lost one: rebuild.py brings it
back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator

from ftrain_snapshot.damage import Place, damages
from ftrain_snapshot.inventory import DAMAGES_MAX
from ftrain_snapshot.ledger import SLOTS
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Task, Timer, Work
from ftrain_snapshot.manifest import Catalog, checksum, chunk_count
from ftrain_snapshot.messages import LaneReport, VerifyReport
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild import Rebuild
from ftrain_snapshot.repair import Repair
from ftrain_snapshot.wire import Mismatch, PositionStored, Restoring, SkipNotice
from ftrain_snapshot.words import SnapshotId

SLICE_CHUNKS = 8
"""Chunks to checksum at a time; each is followed by a rest."""
REST_FACTOR = 99
"""How long to rest after a slice, in times of what it took."""
REST_SECONDS_MIN, REST_SECONDS_MAX = 0.05, 5.0
PASS_PAUSE_SECONDS = 60.0
"""Between two passes."""
POSTPONED_SECONDS_MAX = 30.0
"""For how long what is more urgent can hold the next slice up."""
REPAIR_SECONDS_MAX = 20.0
"""How long a report waits for repairs."""


class Scrub:
    """One generation's checking, on one node."""

    def __init__(self, node: Node, repair: Repair, is_busy: Callable[[], bool]) -> None:
        """``is_busy``: whether something more urgent is under way."""
        self.damaged = self.repaired = 0
        """Chunks, since this generation began."""
        self._node, self._loop, self._store = node, node.loop, node.store
        self._membership, self._group, self._position = node.membership, node.group, node.position
        self._repair_of_start, self._gather = repair, repair.gather
        self._is_busy = is_busy
        self._rebuilds: dict[SnapshotId, Rebuild] = {}
        self._lost: dict[SnapshotId, set[Place]] = {}
        """Of snapshots that the job has given up: the store knows nothing of them any more."""
        self._tasks: list[Task] = []
        self._timers: list[Timer] = []
        self._pass: Iterator[None] | None = None
        self._postponed_since: float | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to read in the background, if it is wanted."""
        if self._membership.scrub:
            self._later(PASS_PAUSE_SECONDS, self._next_slice)

    def close(self) -> None:
        """The generation is over."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        for rebuild in self._rebuilds.values():
            rebuild.close()

    def on_link(self, position: int) -> None:
        """A member is connected (again): it may have what is missing."""
        for rebuild in self._rebuilds.values():
            rebuild.sources.forgive(position)
            rebuild.plan()

    def on_restoring(self, position: int, snapshot: SnapshotId) -> None:
        """A member says anew what it has: it may be what could not be had."""
        if (rebuild := self._rebuilds.get(snapshot)) is not None:
            rebuild.sources.forgive(position)
            rebuild.plan()

    def on_describe(self, snapshot: SnapshotId) -> None:
        """More is known of a snapshot: enough, maybe, to rebuild what was found damaged before it was protected."""
        if (rebuild := self._rebuilds.get(snapshot)) is not None:
            rebuild.plan()

    # In the background.

    def _next_slice(self) -> None:
        now = self._loop.now()
        if self._is_busy():
            self._postponed_since = now if self._postponed_since is None else self._postponed_since
            if now - self._postponed_since < POSTPONED_SECONDS_MAX:
                self._later(1.0, self._next_slice)
                return
        self._postponed_since = None
        if self._pass is None:
            for snapshot in list(self._store.damaged):  # found when this daemon was started, or asked for in vain
                self._repair(snapshot, ())
            self._pass = self._check_all(Counter())
        try:
            next(self._pass)
        except StopIteration:
            self._pass = None
            self._later(PASS_PAUSE_SECONDS, self._next_slice)
            return
        took = self._loop.now() - now
        self._later(min(REST_SECONDS_MAX, max(REST_SECONDS_MIN, REST_FACTOR * took)), self._next_slice)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.action is not None][-16:]
        self._timers.append(self._loop.later(seconds, action))

    # On request.

    def verify(self, answer: Callable[[VerifyReport], None]) -> None:
        """Read everything now, have what is wrong rebuilt, and report. ``answer`` is called once."""
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._loop.spawn(self._verify(answer)))

    def _verify(self, answer: Callable[[VerifyReport], None]) -> Work:
        checked: Counter[tuple[SnapshotId, int]] = Counter()
        before = {snapshot: set(places) for snapshot, places in self._store.damaged.items()}
        for snapshot in before:
            self._repair(snapshot, ())
        found = yield from self._check_all(checked)
        for snapshot, places in before.items():
            found.setdefault(snapshot, set()).update(places)
        deadline = self._loop.now() + REPAIR_SECONDS_MAX

        def report() -> None:
            left = any(places & self._store.damaged.get(snapshot, set()) for snapshot, places in found.items())
            waits = self._rebuilds or (left and self._is_busy())  # the generation's own repair brings back some of it
            if waits and self._loop.now() < deadline:
                self._later(0.02, report)
            else:
                answer(self._report(checked, found))

        report()

    def _report(self, checked: Counter[tuple[SnapshotId, int]], found: dict[SnapshotId, set[Place]]) -> VerifyReport:
        keys = {*checked, *((snapshot, place[0]) for snapshot, places in found.items() for place in places)}
        lanes = []
        for snapshot, lane in sorted(keys):
            bad = {place for place in found.get(snapshot, ()) if place[0] == lane}
            left = bad & (self._store.damaged.get(snapshot, set()) | self._lost.get(snapshot, set()))
            chunks = checked[snapshot, lane]
            where = damages(bad)[:DAMAGES_MAX]
            lanes.append(LaneReport(snapshot, self._position, lane, chunks, len(bad), len(bad) - len(left), where))
        return VerifyReport(tuple(lanes))

    # Both.

    def _check_all(
        self, checked: Counter[tuple[SnapshotId, int]]
    ) -> Generator[None, None, dict[SnapshotId, set[Place]]]:
        """Read every chunk kept here; yields between slices. What was found wrong, and counts of what was read."""
        found: dict[SnapshotId, set[Place]] = {}
        count = 0
        for catalog in self._store.catalogs():
            if catalog.dropped or catalog.snapshot == self._restoring():
                continue
            for place in self._places(catalog):
                wrong = self._is_wrong(catalog.snapshot, place)
                if wrong is None:
                    continue
                checked[catalog.snapshot, place[0]] += 1
                if wrong:
                    found.setdefault(catalog.snapshot, set()).add(place)
                    self._note(catalog.snapshot, place)
                count += 1
                if count % SLICE_CHUNKS == 0:
                    yield
        return found

    def _restoring(self) -> SnapshotId | None:
        """The generation's start, while that is being checked and rebuilt anyway."""
        return self._membership.restore if self._repair_of_start.under_way else None

    def _places(self, catalog: Catalog) -> Iterator[Place]:
        """All chunks of a snapshot that are here; it may be over at any moment."""
        for lane in range(catalog.lanes):
            header = self._store.lanes.sealed(lane, catalog.snapshot)
            for chunk in range(header.chunks if header is not None else 0):
                yield lane, self._group.rotation_of(self._position, chunk), self._group.stripe_of(chunk)
        for parity in list(catalog.parity):
            for stripe in range(chunk_count(parity.parity_bytes)):
                yield parity.lane, parity.rotation, stripe

    def _is_wrong(self, snapshot: SnapshotId, place: Place) -> bool | None:
        """Whether the chunk's bytes are not those on record; None: it is not here any more, or known to be bad."""
        part = self._store.my_part(snapshot, *place)
        if part is None or not part[0]:
            return None
        body, sum_ = part
        if checksum(body) == sum_:
            return False
        again = self._store.my_part(snapshot, *place)  # its slot may have been given to another just now
        return None if again is None or again[1] != sum_ else checksum(again[0]) != sum_

    def _note(self, snapshot: SnapshotId, place: Place) -> None:
        self.damaged += 1
        lane, rotation, stripe = place
        log("chunk_damaged", version=snapshot.version, lane=lane, rotation=rotation, stripe=stripe)
        self._store.mark_damaged(snapshot, (place,))
        self._repair(snapshot, (place,))

    def _repair(self, snapshot: SnapshotId, places: Iterable[Place]) -> None:
        if self._closed or self._repair_of_start.take_over(snapshot, set(places)):
            return
        rebuild = self._rebuilds.get(snapshot)
        if rebuild is None:
            rebuild = self._rebuilds[snapshot] = Rebuild(
                self._node,
                self._gather,
                snapshot,
                lambda: self._node.linked,
                lambda: self._on_progress(snapshot),
                urgent=False,
            )
        rebuild.losses.single |= set(places)
        rebuild.plan()
        if self._node.codec is None:
            self._on_progress(snapshot)

    def _on_progress(self, snapshot: SnapshotId) -> None:
        rebuild = self._rebuilds.get(snapshot)
        if rebuild is None:
            return
        reason = rebuild.impossible() or rebuild.losses.unknown()
        if not reason and snapshot in self._store.damaged:
            return
        self._end_rebuild(snapshot)
        if reason:
            self._give_up(snapshot, reason)
        else:
            self._say_whole(snapshot)

    def _say_whole(self, snapshot: SnapshotId) -> None:
        """All of it is back: who heard meanwhile that it was damaged counts on it again."""
        for member in self._node.linked:
            self._node.links[member].send(Restoring(snapshot, (), ()))
        if any(h.snapshot == snapshot and h.parity and not h.damage for h in self._store.holdings()):
            self._node.tell_gate(PositionStored(snapshot))

    def _end_rebuild(self, snapshot: SnapshotId) -> None:
        """Nothing more is brought back of it: all is, or nobody can, or nobody wants it any more."""
        if (rebuild := self._rebuilds.pop(snapshot, None)) is not None:
            self.repaired += rebuild.losses.repaired
            rebuild.close()

    def _give_up(self, snapshot: SnapshotId, reason: str) -> None:
        """What nobody can bring back is lost, and its snapshot with it: the job must not restore it."""
        log("chunk_lost", version=snapshot.version, position=self._position, reason=reason)
        if snapshot.generation == self._membership.generation:
            self._node.tell_gate(SkipNotice(snapshot))

    def drop(self, snapshot: SnapshotId) -> None:
        """The job gives this snapshot up, and the store is about to forget it: what is damaged of it is lost."""
        self._end_rebuild(snapshot)
        self._lost[snapshot] = set(self._store.damaged.get(snapshot, ()))
        for oldest in sorted(self._lost)[:-SLOTS]:
            del self._lost[oldest]

    # What others find.

    def look_at(self, snapshot: SnapshotId, place: Place) -> None:
        """Somebody found this chunk of this node damaged: if it is, have it rebuilt."""
        if self._is_wrong(snapshot, place):
            self._note(snapshot, place)

    def on_mismatch(self, mismatch: Mismatch) -> None:
        """A chunk of this node's arrived damaged: is it damaged here? Or it is parity, and not that of the data."""
        snapshot, place = mismatch.snapshot, (mismatch.lane, mismatch.rotation, mismatch.stripe)
        if not mismatch.refuted:
            self.look_at(snapshot, place)
        elif mismatch.rotation in self._group.parity_rotations(self._position) and self._store.my_part(
            snapshot, *place
        ):
            self._note(snapshot, place)
