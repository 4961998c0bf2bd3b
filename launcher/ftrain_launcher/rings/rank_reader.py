"""One worker's ring, read again and again: a look ten times a second, a report when it is wanted.

A look is cheap: it asks whether the rank moves. One that does not is news once an operation lasts for longer than is
usual, or if its process is stopped. A report says where the rank is, from the counts and the recent operations of each
communicator, and what it has done since the last one, from the records: durations go to the history of their
class (`op_history`), sums to the step at hand (`step_log`). What was pending then is looked up again later.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

from msgspec.structs import replace

from ftrain.comm.ring import HOLDS, MARKS_MAX, NO_STEP, NONE, RECORDS_MAX, WAITS, Group, Live
from ftrain_launcher.detect.records import (
    NO_DTYPE,
    PENDING_MAX,
    Call,
    Channel,
    Collectives,
    Departure,
    Op,
    Operation,
    ProcessState,
    RankRecord,
    RankStep,
    pending_operations,
)
from ftrain_launcher.rings.beside import beside
from ftrain_launcher.rings.helpers import Helpers, StarvedHelpers, waits_of
from ftrain_launcher.rings.lateness import late_in_seconds, waits_long
from ftrain_launcher.rings.op_history import DIRECT, OpHistory, class_of
from ftrain_launcher.rings.process_state import ProcessWatch
from ftrain_launcher.rings.program_order import departure
from ftrain_launcher.rings.starvation import Starvation
from ftrain_launcher.rings.step_log import StepLog, spread, spread_helpers, spread_throttled
from ftrain_launcher.rings.view import FAILED, PENDING, ChannelCounts, Record, RingView, begun_ns

_CATCH_UP_RECORDS = RECORDS_MAX // 4
"""The records are read when so many have come, if no report is wanted before."""
_STEPS_KEPT_MAX = 1024
_HEALTHY = frozenset("RSDIPK")
"""Letters of processes that may go on by themselves: runnable, asleep, waiting for a disk and the like."""
_WITHOUT_FUTURE = DIRECT | {Op.REDUCE_SCATTER, Op.REDUCE_SCATTER_SINGLE, Op.REDUCE_SCATTER_SINGLE_COALESCED}
"""On gloo. Elsewhere they are followed to their end as others are."""

Index = Callable[[Group], int | None]
"""What a report calls a process group; None: its members are unknown."""


class RankReader:
    """One worker of one generation. Raises OSError, RingInvalid if it has no ring (yet)."""

    def __init__(self, path: Path, rank: int, pid: int, index: Index, now_ns: int) -> None:
        self.ring = RingView(path)
        self._rank, self._index_of, self._pid = rank, index, pid
        self._process = ProcessWatch(pid)
        self._process_state: ProcessState | None = None
        self._starvation, self._counted_from_ns = Starvation(pid), now_ns
        """How long a step waited for a processor is known if it began after that."""
        self._starved_seconds = self._throttled_seconds = 0.0
        """Not yet told with a step."""
        self._starved_outside_seconds, self._noted_ns = 0.0, now_ns
        """Waited for a processor since it last moved, as of when that was noted."""
        self._helpers = Helpers(functools.partial(waits_of, pid))
        self._starved_helpers = StarvedHelpers(functools.partial(waits_of, pid))
        self._history = OpHistory()
        self._steps = StepLog(rank)
        self._seen = 0
        """The newest record that was read."""
        self._open: set[int] = set()
        """Older ones that were pending, or could not be read."""
        self._marks_seen = self._waits_seen = 0
        self._waits_ns: int | None = None
        """Since when it waits for rank 0 at the end of a step."""
        self._holds_ns: int | None = None
        """Since when it ends a step without."""
        self._step, self._step_ns = -1, self.ring.started_ns
        self._recent_told = -1, -1
        """How many records and marks there were when the recent operations were told."""
        self._departure: Departure | None = None
        """As of then."""
        self._moved_ns: int | None = None
        """When it last entered or left an operation."""
        self._trained_ns: int | None = None
        """The same, of those that are not beside its training."""
        self._done: list[RankStep] = []
        """Steps that were completed since the last report."""
        self._live: Live | None = None
        self._late_at_ns: float | None = None
        """If the rank does not move until then, an operation is late; None: not looked up since it moved."""
        self._indices: list[int | None] = []
        """By the ring's number of a process group."""
        self._settled: dict[int, Record] = {}
        """The newest collective of each communicator, where nothing was pending."""

    def close(self) -> None:
        """Let go of the ring and the process."""
        self.ring.close()
        self._process.close()
        self._starvation.close()

    def look(self, now_ns: int) -> bool:
        """Whether there is news: the rank has not moved since the last look, and should have by now, or cannot."""
        live = self.ring.live()
        if live.head - self._seen > _CATCH_UP_RECORDS:
            self._catch_up(live)
        if live != self._live:
            self._live, self._late_at_ns = live, None
            self._helpers.moved(now_ns)
            return False
        self._process_state = self._process.read()
        self._starvation.queued_seconds(self._process_state.letter, now_ns)
        if self._process_state.letter not in _HEALTHY:
            return True
        if self._late_at_ns is None:
            self._late_at_ns = now_ns + late_in_seconds(self._record(live, now_ns)) * 1e9
        if (is_late := now_ns >= self._late_at_ns) or not live.inside:
            self._helpers.look(now_ns, self._process_state.letter)
        return is_late

    def report(self, now_ns: int, *, is_last: bool = False) -> tuple[RankRecord | None, list[RankStep]]:
        """How it stands, and the steps that were completed since the last report; with its recent operations, and where
        its program departed, if it waits long in one, or ``is_last``.

        No record: it is in an operation of which the ring cannot tell enough.
        """
        live = self.ring.live()
        self._catch_up(live)
        mark = self.ring.mark(live.marks)
        self._waits_ns = self._holds_ns = None
        if mark is not None and mark.step in NO_STEP:
            self._waits_ns = mark.at_ns if mark.step == WAITS else None
            self._holds_ns = mark.at_ns if mark.step == HOLDS else None
        number = live.marks
        while mark is not None and mark.step in NO_STEP:
            number -= 1
            mark = self.ring.mark(number)
        if mark is not None:
            self._step, self._step_ns = mark.step, mark.at_ns
        self._process_state = self._process.read()
        record = self._record(live, now_ns)
        place = live.head, live.marks
        if (is_last or waits_long(record)) and self._recent_told != place:
            self._recent_told, self._departure = place, self._find_departure(live)
            record = self._with_recent(record, now_ns)
        if self._recent_told == place:
            record = replace(record, departure=self._departure)
        done = self._tell_steps(now_ns)
        record = replace(record, starved_seconds=self._starved(live, record, now_ns))
        return None if self._is_unseen(live, record) else record, done

    def _tell_steps(self, now_ns: int) -> list[RankStep]:
        """Those completed since the last report, with what they waited for a processor. Nothing is told of steps of
        which that is not known: where others crowd the machine, they would look slow."""
        waited, done = self._starvation.more(), self._done
        if waited is None:
            self._done = []
            return []
        self._note_starved_outside(waited.starved, now_ns)
        self._starved_seconds += waited.starved
        self._throttled_seconds += waited.throttled
        helpers_share = self._starved_helpers.share(now_ns, waited.starved)
        if not done:
            return []
        told = spread_throttled(spread(done, self._starved_seconds), self._throttled_seconds)
        # What the completed steps had no time for came in the one at hand, as far as that has lasted.
        rest = self._starved_seconds - sum(step.starved_seconds for step in told)
        self._done, self._throttled_seconds = [], 0.0
        self._starved_seconds = max(0.0, min(rest, (now_ns - self._step_ns) * 1e-9))
        return spread_helpers(told, helpers_share)

    def _note_starved_outside(self, more_seconds: float, now_ns: int) -> None:
        moved = self._trained_ns or 0
        before = self._starved_outside_seconds if moved <= self._noted_ns else 0.0
        self._noted_ns = now_ns
        # Of the time since the last report some may have been before it moved: rather too much than too little.
        self._starved_outside_seconds = max(0.0, min(before + more_seconds, (now_ns - moved) * 1e-9))

    def _starved(self, live: Live, record: RankRecord, now_ns: int) -> float:
        """How long it, or somebody whom it may wait for in its sleep, waited for a processor since it last moved."""
        if live != self._live or record.idle_seconds is None:
            return self._starved_outside_seconds
        idle = min(record.idle_seconds, record.step_age_seconds)
        starved = self._starved_outside_seconds + self._starvation.queued_seconds(self._process.read().letter, now_ns)
        return min(idle, starved + self._helpers.starved_seconds(now_ns, idle))

    # ---- where it is

    def _record(self, live: Live, now_ns: int) -> RankRecord:
        self._name_groups(live.communicators)
        counts, channels = self.ring.communicators(live.communicators), self.ring.channels(live.channels)
        pending = sum(entered - completed for entered, completed, _ in counts)
        pending += sum(channel.pending for channel in channels)
        # A work without a future counts as inside only while somebody waits for it.
        all_inside = live.inside >= pending
        collectives = self._collectives(counts, now_ns, all_inside)
        several = any(place.last is not None and place.last.thread != self._pid for place in collectives)
        threads, trained_ns = self._beside(counts, channels) if several else ((), 0)
        self._trained_ns = trained_ns if threads else self._moved_ns
        return RankRecord(
            self._rank,
            self._step,
            (now_ns - self._step_ns) * 1e-9,
            collectives,
            self._channels(channels, now_ns, all_inside, with_thread=several),
            self._process_state,
            _seconds_since(self._trained_ns, now_ns),
            commit=self._commit(now_ns),
            holds_seconds=_seconds_since(self._holds_ns, now_ns),
            ended=bool(live.closed),
            beside=threads,
            beside_idle_seconds=_seconds_since(self._moved_ns, now_ns) if threads else None,
        )

    def _beside(self, counts: list[tuple[int, int, int]], channels: list[ChannelCounts]) -> tuple[tuple[int, ...], int]:
        """The threads beside its training, and when another one moved."""
        recent = [self.ring.recent(number) for number, (entered, _, _) in enumerate(counts) if entered]
        recent += map(self.ring.channel_recent, range(len(channels)))
        return beside(recent, self._pid)

    def _commit(self, now_ns: int) -> Operation | None:
        if self._waits_ns is None:
            return None
        age_seconds = max(0, now_ns - self._waits_ns) * 1e-9
        return Operation(self._step + 1, Op.COMMIT, 0, NO_DTYPE, 0, -1, age_seconds, 0.0)

    def _name_groups(self, count: int) -> None:
        if count == len(self._indices):
            return
        for group in self.ring.groups(count)[len(self._indices) :]:
            index = self._index_of(group)
            # A group that was made anew under its old name and members is meant from now on.
            self._indices = [None if index is not None and old == index else old for old in self._indices]
            self._indices.append(index)

    def _collectives(
        self, counts: list[tuple[int, int, int]], now_ns: int, all_inside: bool
    ) -> tuple[Collectives, ...]:
        found: list[Collectives] = []
        for number, (entered, completed, queued) in enumerate(counts):
            index = self._indices[number]
            if index is None or entered == 0:
                continue
            pending: list[Record] = []
            last = self._settled.get(number)
            if last is None or last.seq != entered or entered > completed:
                pending, last = self._unsettled(number, entered, completed)
            shown = self._pending(pending, now_ns, all_inside) if pending else ()
            newest = None if last is None else self._operation(last, now_ns)
            found.append(Collectives(index, entered - queued, completed, shown, newest, queued=queued))
        return tuple(found)

    def _unsettled(self, number: int, entered: int, completed: int) -> tuple[list[Record], Record | None]:
        """What is pending in a communicator, and what was entered last. One record tells it in most cases."""
        newest = self.ring.newest(number, entered)
        if newest is not None and newest.seq == entered:
            if entered == completed and newest.exit < PENDING:
                self._settled[number] = newest
                return [], newest
            if entered == completed + 1 and newest.exit >= PENDING and not newest.is_queued:
                return [newest], newest
        records = [record for record in self.ring.recent(number) if not record.is_queued]
        newest = max(records, key=lambda record: record.seq, default=None)
        return [record for record in records if record.exit >= PENDING], newest

    def _with_recent(self, record: RankRecord, now_ns: int) -> RankRecord:
        numbers = {index: number for number, index in enumerate(self._indices)}
        told = []
        for place in record.collectives:
            recent = self.ring.recent(numbers[place.communicator])
            shown = tuple(self._operation(one, now_ns) for one in recent if not one.is_queued)
            told.append(replace(place, recent=shown))
        return replace(record, collectives=tuple(told))

    def _find_departure(self, live: Live) -> Departure | None:
        """Whether its program goes another way than in the steps that are still on record."""
        first = max(0, live.head - RECORDS_MAX)
        marks = self.ring.marks(max(0, live.marks - MARKS_MAX), live.marks)
        heads = [mark.head for mark in marks if mark.head >= first and mark.step not in NO_STEP]
        if len(heads) < 2:
            return None
        steps: list[list[Call]] = [[] for _ in heads]
        for number, _, _, _, size, communicator, _, op, root, _ in self.ring.records(heads[0], live.head):
            index = self._indices[communicator] if communicator < len(self._indices) else None
            steps[bisect.bisect_left(heads, number) - 1].append(Call(-1 if index is None else index, op, root, size))
        if self._waits_ns is not None or self._holds_ns is not None:
            steps.append([])  # the step at hand is over
        return departure(steps)

    def _channels(
        self, channels: list[ChannelCounts], now_ns: int, all_inside: bool, *, with_thread: bool
    ) -> tuple[Channel, ...]:
        found: list[Channel] = []
        for number, channel in enumerate(channels):
            index = self._indices[channel.communicator]
            if index is None:
                continue
            records = self.ring.channel_recent(number) if channel.pending or with_thread else []
            open_ones = [record for record in records if record.exit >= PENDING and not record.is_queued]
            pending = self._pending(open_ones, now_ns, all_inside) if open_ones else ()
            thread = records[-1].thread if records and with_thread else 0
            queued = channel.sends_queued, channel.receives_queued
            found.append(Channel(index, *channel.taken, pending, thread, *queued))
        return tuple(found)

    def _pending(self, records: list[Record], now_ns: int, all_inside: bool) -> tuple[Operation, ...]:
        """Those in which the rank is, or for which it waits; a receive may be begun long before it is needed."""
        found = [r for r in records if all_inside or r.waited_ns or r.op not in _WITHOUT_FUTURE]
        return tuple(self._operation(record, now_ns) for record in found[:PENDING_MAX])

    def _operation(self, record: Record, now_ns: int) -> Operation:
        kind = class_of(record.communicator, record.op, record.root, record.bytes)
        return Operation(
            record.seq,
            record.op,
            record.bytes,
            record.dtype,
            record.elements,
            record.root,
            max(0, now_ns - record.begun_ns) * 1e-9,
            record.gap_ns * 1e-9,
            self._history.usual_seconds(kind),
            record.thread,
            self._history.usual_gap_seconds(kind),
        )

    def _is_unseen(self, live: Live, record: RankRecord) -> bool:
        """It is in some operation, none is seen, and some have been entered of which the ring tells too little."""
        missed = live.missed_communicators + live.missed_channels + live.missed_members
        return missed > 0 and live.inside > 0 and not pending_operations(record)

    # ---- what it has done

    def _catch_up(self, live: Live) -> None:
        """Take in the records and marks that have come since the last time."""
        self._name_groups(live.communicators)
        self._look_up_open(live.head)
        if self._seen < live.head - RECORDS_MAX:
            self._steps.miss()
        records = self.ring.records(self._seen, live.head)
        marks = [mark for mark in self.ring.marks(self._marks_seen, live.marks) if mark.head <= live.head]
        first = max(self._seen, live.head - RECORDS_MAX) + 1
        if len(records) < live.head + 1 - first:
            self._open.update(set(range(first, live.head + 1)) - {fields[0] for fields in records})
        self._seen = live.head
        begin = 0
        for mark in marks:
            end = bisect.bisect_right(records, mark.head, begin, key=itemgetter(0))
            self._take(records[begin:end])
            begin, self._marks_seen = end, mark.number
            if mark.step in NO_STEP:
                self._waits_seen += 1
                continue
            self._history.begin_step(mark.number - self._waits_seen)
            mark = mark._replace(number=mark.number - self._waits_seen)
            step = self._steps.end_step(mark, self._indices.__getitem__)
            if step is not None and mark.at_ns - step.seconds * 1e9 >= self._counted_from_ns:
                self._done.append(step)
        self._take(records[begin:])
        self._history.refresh()
        del self._done[:-_STEPS_KEPT_MAX]

    def _look_up_open(self, head: int) -> None:
        """Those that were pending, or torn, at the last time; what has been overwritten since is forgotten."""
        for number in sorted(self._open):
            self._open.discard(number)
            if number > head - RECORDS_MAX:
                records = self.ring.records(number - 1, number)
                self._take(records, in_step=number > self._steps.head)
                if not records:
                    self._open.add(number)

    def _take(self, records: Sequence[tuple[int, ...]], *, in_step: bool = True) -> None:
        note, add = self._history.add, self._steps.add
        moved = self._moved_ns or 0
        for number, enter_ns, word, gap_ns, size, communicator, channel, op, root, reached in records:
            if reached:
                enter_ns = begun_ns(enter_ns, reached)
            if enter_ns > moved and reached < PENDING:  # what is queued only moves nothing
                moved = enter_ns
            if word < FAILED:
                if word > moved:
                    moved = word
                ns = max(0, word - enter_ns)
                note(class_of(communicator, op, root, size), ns, gap_ns)
                if in_step and channel == NONE and communicator != NONE and op not in DIRECT:
                    add(communicator, size, ns)
            elif word >= PENDING:
                self._open.add(number)
        self._moved_ns = moved or None


def _seconds_since(ns: int | None, now_ns: int) -> float | None:
    return None if ns is None else max(0, now_ns - ns) * 1e-9
