"""Brings back what a node lacks of the snapshot that its generation starts from.

    check own units and parity against their checksums
      └─ tell the group (Restoring), and hear what the others have
           ├─ segments bad here:  per stripe, fetch parity and the others' segments, fold them into place,
           │                      check the result against the descriptors that the others keep ──> restored
           └─ parity bad here, all data good everywhere: fetch the stripe's data, fold it ──> PositionStored

Bad is anything missing or damaged, segment by segment: two nodes with damage in different stripes both recover. A lost
connection cancels what hung on it; it is planned again when the peer tells its state again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.errors import ArenaTooSmall, ChecksumMismatch, ProtocolError
from ftrain_snapshot.fold import Fold
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Task, Timer, Work
from ftrain_snapshot.manifest import (
    Catalog,
    ParityDescriptor,
    UnitDescriptor,
    chunk_spans,
    sum_at,
)
from ftrain_snapshot.messages import Membership, SnapshotId
from ftrain_snapshot.placement import Group, segment_spans
from ftrain_snapshot.store import Store, sums_of
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed, PeerMessage, PositionSealed, PositionStored, Restoring

PEER_TIMEOUT_SECONDS = 15.0
"""How long to wait for the others of the group before saying that it cannot be done."""
ATTEMPTS_MAX = 3
"""How often damaged bytes are fetched again."""


Stripe = tuple[int, int]
"""(lane, rotation)."""


class Job:
    """One stripe being folded: a segment of this node, or the parity that it keeps."""

    def __init__(self, stripe: Stripe, lengths: dict[int, int], codec: Codec) -> None:
        self.lane, self.rotation = self.stripe = stripe
        self.lengths = lengths
        """How many bytes each source (position) sends."""
        self.fold = Fold(codec)


class Repair:
    """One generation's restoring, on one node."""

    def __init__(
        self,
        loop: Loop,
        store: Store,
        membership: Membership,
        group: Group,
        codec: Codec | None,
        links: Mapping[int, Connection],
        tell_gate: Callable[[PeerMessage], None],
        changed: Callable[[], None],
    ) -> None:
        self.restored = False
        self.failure = ""
        self._loop = loop
        self._store = store
        self._membership = membership
        self._snapshot = membership.restore or SnapshotId(-1, -1, -1)
        self._position = membership.position
        self._group = group
        self._codec = codec
        self._links = links
        self._tell_gate = tell_gate
        self._changed = changed
        self._checked = False
        self._bad: set[Stripe] = set()
        self._bad_parity: set[Stripe] = set()
        self._states: dict[int, Restoring] = {}
        self._jobs: dict[int, Job] = {}
        self._busy: set[Stripe] = set()
        self._attempt = 0
        self._damaged = 0
        self._tasks: list[Task] = []
        self._timer: Timer | None = None

    def start(self, *, under_way: bool) -> None:
        """Check, and rebuild what is bad. ``under_way``: snapshots of this generation exist here: it is past that."""
        if self._membership.restore is None or under_way:
            self.restored = True
            return
        self._timer = self._loop.later(PEER_TIMEOUT_SECONDS, self._too_late)
        self._spawn(self._check())

    def close(self) -> None:
        """The generation is over."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # What is here.

    def _check(self) -> Work:
        """Compare all local bytes of the snapshot with their checksums."""
        catalog = self._store.begin(self._snapshot, self._membership.lanes)
        if catalog is None or catalog.dropped:
            self._fail("its slot has been given to a newer one here")
            return
        rotations = self._group.data_rotations(self._position)
        for lane in range(self._membership.lanes):
            unit, header = catalog.unit(self._position, lane), self._store.sealed(lane, self._snapshot)
            bad: Sequence[int] = range(self._group.segments)
            if unit is not None:  # the header proves nothing: a half-folded one may be another node's
                bad = yield from self._store.bad_segments(unit)
            elif header is not None:  # the daemon was killed between the seal and its checksums
                bad = ()
                catalog.put((yield from self._describe(lane, header.unit_bytes)))
            self._bad.update((lane, rotations[segment]) for segment in bad)
        lanes = yield from self._store.bad_parity(catalog)
        catalog.parity = [p for p in catalog.parity if p.lane not in lanes]
        self._bad_parity = {(lane, r) for lane in lanes for r in self._group.parity_rotations(self._position)}
        self._checked = True
        if self._bad:
            self._store.unusable.add(self._snapshot)
            log("repair", version=self._snapshot.version, position=self._position, segments=len(self._bad))
        self._after_change()

    def _describe(self, lane: int, unit_bytes: int) -> Generator[None, None, UnitDescriptor]:
        sums = []
        for offset, length in segment_spans(unit_bytes, self._group.segments):
            sums.append((yield from sums_of(self._unit(lane, unit_bytes)[offset : offset + length])))
        return UnitDescriptor(self._snapshot, self._position, lane, unit_bytes, tuple(sums))

    def _unit(self, lane: int, unit_bytes: int) -> memoryview:
        region = self._store.region(self._snapshot.slot, lane)
        return region.unit(unit_bytes) if region is not None else memoryview(b"")

    def _after_change(self) -> None:
        """Tell everybody what is here now, and see what can be done next."""
        if not self._bad and not self.restored:
            self._store.unusable.discard(self._snapshot)
            self.restored, self.failure = True, ""
            log("restored", version=self._snapshot.version, generation=self._membership.generation)
            self._tell_gate(PositionSealed(self._snapshot, ()))
            self._changed()
        if self._group.parity and not self._bad_parity:
            self._tell_gate(PositionStored(self._snapshot))
        for member in self._group.members:
            if member in self._links:
                self.on_link(member)
        self._plan()

    # What the others have.

    def on_link(self, position: int) -> None:
        """A member of the group is connected: tell it what is here."""
        catalog = self._store.catalog(self._snapshot)
        if self._checked and catalog is not None:
            lanes = tuple({lane for lane, _ in self._bad_parity})
            self._links[position].send(Restoring(self._snapshot, tuple(self._bad), lanes, tuple(catalog.units)))

    def on_lost(self, position: int) -> None:
        """A member's connection is gone, and with it what it was sending."""
        self._states.pop(position, None)
        for attempt, job in list(self._jobs.items()):
            if position in job.lengths:
                self._cancel(attempt)

    def on_restoring(self, position: int, state: Restoring) -> None:
        """A member says what it has."""
        catalog = self._store.catalog(self._snapshot)
        if state.snapshot != self._snapshot or catalog is None:
            return
        self._states[position] = state
        for unit in state.units:
            sound = unit.snapshot == self._snapshot and len(unit.sums) == self._group.segments
            ours = unit.lane in range(self._membership.lanes) and unit.position in self._group.members
            if sound and ours and catalog.unit(unit.position, unit.lane) is None:
                catalog.put(unit)
        self._plan()

    # What can be done.

    def _plan(self) -> None:
        """Start what can be started; say so if nothing ever can."""
        if not self._checked or not (self._bad or self._bad_parity):
            return
        if self._bad and (reason := self._impossible()):
            self._fail(reason)
            return
        waits = any(p not in self._states for p in self._group.members if p != self._position)
        wanted = self._bad or self._bad_parity
        if waits or (not self._bad and any(state.bad for state in self._states.values())):
            return
        if wanted - self._busy:
            stripes = sorted(wanted - self._busy)
            self._busy.update(stripes)
            self._spawn(self._rebuild(stripes))

    def _impossible(self) -> str:
        """Why the bad segments here can never be rebuilt; empty if they may be."""
        if self._codec is None:
            return "there is no parity to rebuild it from"
        for lane, rotation in sorted(self._bad):
            lost = {self._position}
            for position, state in self._states.items():
                parity = position in self._group.parity_members(rotation)
                if (lane in state.bad_parity) if parity else ((lane, rotation) in state.bad):
                    lost.add(position)
            if len(lost) > self._group.parity:
                names = ", ".join(map(str, sorted(lost)))
                return f"lane {lane}: the bytes of positions {names} are missing in one stripe, parity replaces one"
        return ""

    def _rebuild(self, stripes: list[Stripe]) -> Work:
        """Make room and ask for what the stripes are made of. The catalog goes first: it tells torn from whole."""
        catalog = self._store.catalog(self._snapshot)
        if catalog is None or self._codec is None:
            return
        self._store.save(catalog)
        for stripe in stripes:
            lane, rotation = stripe
            units = {p: catalog.unit(p, lane) for p in self._group.members}
            known = {p: unit for p, unit in units.items() if unit is not None}
            if len(known) < len(units):
                missing = sorted(set(units) - set(known))
                self._busy.difference_update(stripes)
                self._fail(f"nobody knows the checksums of positions {missing}, lane {lane}")
                return
            lengths = {p: self._span(known[p], rotation)[1] for p in self._group.data_members(rotation)}
            longest = max(lengths.values())
            try:
                if self._position in lengths:
                    yield from self._store.grow_region(self._snapshot.slot, lane, known[self._position].unit_bytes)
                else:
                    yield from self._store.grow_parity(self._snapshot.slot, lane, longest)
            except ArenaTooSmall as error:
                self._busy.difference_update(stripes)
                self._fail(str(error))
                return
            if lengths.pop(self._position, None) is not None:
                lengths |= dict.fromkeys(self._group.parity_members(rotation), longest)
            self._begin(Job(stripe, lengths, self._codec))

    def _span(self, unit: UnitDescriptor, rotation: int) -> tuple[int, int]:
        """(offset, length) of the unit's segment of that rotation."""
        spans = segment_spans(unit.unit_bytes, len(unit.sums))
        return spans[self._group.segment_of(unit.position, rotation)]

    def _begin(self, job: Job) -> None:
        self._attempt += 1
        self._jobs[self._attempt] = job
        for source, length in job.lengths.items():
            if source not in self._links:
                self._cancel(self._attempt)
                return
            if length:
                self._links[source].send(Fetch(self._snapshot, job.lane, job.rotation, self._attempt))
        if job.fold.is_complete(job.lengths):
            self._complete(self._attempt)

    def _cancel(self, attempt: int) -> None:
        job = self._jobs.pop(attempt, None)
        if job is not None:
            self._busy.discard(job.stripe)

    # Bytes.

    def on_fetch(self, position: int, fetch: Fetch) -> None:
        """A member asks for this node's part of a stripe."""
        link, catalog = self._links[position], self._store.catalog(self._snapshot)
        body, sums = memoryview(b""), b""
        if self._checked and catalog is not None and fetch.snapshot == self._snapshot:
            if fetch.rotation in self._group.parity_rotations(self._position):
                for parity in catalog.parity:
                    if parity.lane == fetch.lane:
                        body = self._store.parity(self._snapshot.slot, fetch.lane)[: parity.parity_bytes]
                        sums = parity.sums
            elif fetch.rotation in self._group.data_rotations(self._position):
                unit = catalog.unit(self._position, fetch.lane)
                if unit is not None and (fetch.lane, fetch.rotation) not in self._bad:
                    offset, length = self._span(unit, fetch.rotation)
                    body = self._unit(fetch.lane, unit.unit_bytes)[offset : offset + length]
                    sums = unit.sums[self._group.segment_of(self._position, fetch.rotation)]
        if not body:
            link.send(FetchFailed(fetch.attempt, f"position {self._position} does not have it"))
        for index, (offset, length) in enumerate(chunk_spans(len(body))):
            chunk = Chunk(self._snapshot, fetch.lane, fetch.rotation, offset, sum_at(sums, index), fetch.attempt)
            link.send_bulk(chunk, body[offset : offset + length])

    def on_fetch_failed(self, position: int, failed: FetchFailed) -> None:
        """A member does not have what it said it has; it will say anew what it has."""
        if failed.attempt in self._jobs:
            self._cancel(failed.attempt)
            self._states.pop(position, None)
            self._fail(failed.reason)

    def on_chunk(self, position: int, chunk: Chunk, body: memoryview) -> None:
        """Bytes that were asked for; those of a cancelled job are ignored."""
        job, catalog = self._jobs.get(chunk.attempt), self._store.catalog(self._snapshot)
        if job is None or catalog is None or position not in job.lengths:
            return
        expected = chunk.checksum
        if (unit := catalog.unit(position, job.lane)) and position in self._group.data_members(job.rotation):
            segment = self._group.segment_of(position, job.rotation)
            expected = sum_at(unit.sums[segment], chunk.offset >> 20)
        try:
            job.fold.add(position, chunk.offset, body, expected, self._destination(job, catalog))
        except (ChecksumMismatch, ProtocolError) as error:
            self._again(chunk.attempt, str(error))
            return
        if job.fold.is_complete(job.lengths):
            self._complete(chunk.attempt)

    def _destination(self, job: Job, catalog: Catalog) -> memoryview:
        unit = catalog.unit(self._position, job.lane)
        if unit is not None and self._position in self._group.data_members(job.rotation):
            offset, length = self._span(unit, job.rotation)
            return self._unit(job.lane, unit.unit_bytes)[offset : offset + length]
        return self._store.parity(self._snapshot.slot, job.lane)[: max(job.lengths.values())]

    def _complete(self, attempt: int) -> None:
        self._spawn(self._verify(attempt))

    def _verify(self, attempt: int) -> Work:
        """Check what was folded, and take it over."""
        job, catalog = self._jobs[attempt], self._store.catalog(self._snapshot)
        if catalog is None:
            return
        destination = self._destination(job, catalog)
        sums = yield from sums_of(destination)
        if attempt not in self._jobs or self._store.catalog(self._snapshot) is not catalog:
            return
        unit = catalog.unit(self._position, job.lane)
        if job.stripe in self._bad and unit is not None:
            if sums != unit.sums[self._group.segment_of(self._position, job.rotation)]:
                self._again(attempt, f"lane {job.lane}: the rebuilt bytes do not have the checksum of the lost ones")
                return
            self._bad.discard(job.stripe)
            over = not self._bad
        else:
            catalog.parity.append(ParityDescriptor(job.lane, len(destination), sums))
            self._bad_parity.discard(job.stripe)
            over = not self._bad_parity
        self._cancel(attempt)
        if over:
            self._store.save(catalog)
            self._after_change()

    def _again(self, attempt: int, reason: str) -> None:
        """Fetch a stripe anew, a few times."""
        job = self._jobs[attempt]
        self._cancel(attempt)
        self._damaged += 1
        log("repair_damaged", version=self._snapshot.version, lane=job.lane, reason=reason)
        if self._damaged <= ATTEMPTS_MAX:
            self._plan()
        else:
            self._fail(reason)

    def _too_late(self) -> None:
        if not self.restored:
            away = [p for p in self._group.members if p != self._position and p not in self._states]
            told = f"positions {away} did not say what they hold" if away else "its bytes did not arrive"
            self._fail(f"{told} within {PEER_TIMEOUT_SECONDS:g} s")

    def _fail(self, reason: str) -> None:
        """Say why it cannot be done now. It is done all the same if that changes."""
        text = f"snapshot {self._snapshot.version} cannot be restored on position {self._position}: {reason}"
        log("repair_failed", version=self._snapshot.version, position=self._position, reason=reason)
        if not self.restored:
            self.failure = text
            self._changed()

    def _spawn(self, work: Work) -> None:
        self._tasks = [task for task in self._tasks if not task.done]
        self._tasks.append(self._loop.spawn(work))
