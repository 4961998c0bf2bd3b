"""A made-up worker, as an agent would see it in its ring: what it has entered, what it waits for, what it called."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from simulation.comm_programs import FLOAT, Action

from ftrain_launcher.detect.records import (
    PENDING_MAX,
    Call,
    Channel,
    Collectives,
    Communicator,
    Departure,
    Op,
    Operation,
    ProcessState,
    RankRecord,
    RankStep,
)
from ftrain_launcher.detect.waits import LEFT_WHEN_WAITED
from ftrain_launcher.rings.op_history import OpHistory
from ftrain_launcher.rings.program_order import departure

STEPS_ON_RECORD = 32
LONG_SECONDS = 0.2
WITHOUT_FUTURE = LEFT_WHEN_WAITED | {Op.SEND, Op.RECEIVE}


@dataclass(eq=False)
class Entry:
    """One operation of one rank."""

    seq: int
    op: Op
    elements: int
    root: int
    entered: float
    gap: float
    kind: tuple[int, int, int, int]
    ended: bool = False
    """It is over, left or not."""

    def shown(self, now: float, history: OpHistory) -> Operation:
        size, usual, gap = 4 * self.elements, history.usual_seconds(self.kind), history.usual_gap_seconds(self.kind)
        facts = (self.seq, self.op, size, FLOAT, self.elements, self.root)
        return Operation(*facts, now - self.entered, self.gap, usual, usual_gap_seconds=gap)


@dataclass(eq=False)
class Place:
    """A rank in one communicator, or towards one peer and in one direction."""

    communicator: Communicator
    entered: int = 0
    completed: int = 0
    pending: list[Entry] = field(default_factory=list)
    last: Entry | None = None
    recent: deque[Entry] = field(default_factory=lambda: deque(maxlen=8))


@dataclass(eq=False)
class Rank:
    """One simulated worker."""

    number: int
    steps: Iterator[Iterator[Action]]
    dice: random.Random
    actions: Iterator[Action] = field(default_factory=lambda: iter(()))
    places: dict[Communicator, Place] = field(default_factory=dict)
    transfers: dict[tuple[str, int], Place] = field(default_factory=dict)
    history: OpHistory = field(default_factory=OpHistory)
    letter: str = "S"
    frozen: bool = False
    computing_since: float | None = None
    cpu: float = 0.0
    left: float = 0.0
    entered: float = 0.0
    moved: float = 0.0
    told: float = -1.0
    """The recent operations of a rank are told once while it does not move."""
    waiting_for: list[Entry] | None = None
    step: int = -1
    marked: float = 0.0
    outside: float = 0.0
    done: list[RankStep] = field(default_factory=list)
    calls: deque[list[Call]] = field(default_factory=lambda: deque([[]], maxlen=STEPS_ON_RECORD))
    """What it called, step by step; the last one is the step at hand."""
    departure: Departure | None = None

    def outstanding(self) -> list[Entry]:
        return [entry for place in (*self.places.values(), *self.transfers.values()) for entry in place.pending]

    def record(self, now: float, table: dict[Communicator, int]) -> RankRecord:
        """What its agent reports; ``table`` numbers the communicators of a report."""
        self.history.refresh()
        is_late = self.told != self.entered and any(
            now - entry.entered > max(self.history.usual_seconds(entry.kind) or 0.0, LONG_SECONDS)
            for entry in filter(self._is_seen, self.outstanding())
        )
        if is_late:
            self.told = self.entered
            self.departure = departure(list(self.calls))
        return RankRecord(
            self.number,
            self.step,
            now - self.marked,
            tuple(self._collectives(now, table, with_recent=is_late)),
            tuple(self._channels(now, table)),
            self._process(now),
            now - self.moved,
            self.departure if self.told == self.entered else None,
        )

    def _is_seen(self, entry: Entry) -> bool:
        """Of what has no future it is only known who waits for it."""
        return entry.op not in WITHOUT_FUTURE or entry in (self.waiting_for or ())

    def _pending(self, entries: list[Entry], now: float) -> tuple[Operation, ...]:
        return tuple(entry.shown(now, self.history) for entry in entries[:PENDING_MAX] if self._is_seen(entry))

    def _collectives(self, now: float, table: dict[Communicator, int], *, with_recent: bool) -> Iterator[Collectives]:
        for communicator, place in self.places.items():
            yield Collectives(
                table.setdefault(communicator, len(table)),
                place.entered,
                place.completed,
                self._pending(place.pending, now),
                place.last.shown(now, self.history) if place.last is not None else None,
                tuple(entry.shown(now, self.history) for entry in place.recent) if with_recent else (),
            )

    def _channels(self, now: float, table: dict[Communicator, int]) -> Iterator[Channel]:
        for peer in sorted({peer for _, peer in self.transfers}):
            sends, receives = (self.transfers.get((op.name, peer)) for op in (Op.SEND, Op.RECEIVE))
            places = [place for place in (sends, receives) if place is not None]
            communicator = places[0].communicator
            pending = sorted((entry for place in places for entry in place.pending), key=lambda entry: entry.entered)
            yield Channel(
                table.setdefault(communicator, len(table)),
                peer,
                sends.entered if sends is not None else 0,
                sends.completed if sends is not None else 0,
                receives.entered if receives is not None else 0,
                receives.completed if receives is not None else 0,
                self._pending(pending, now),
            )

    def _process(self, now: float) -> ProcessState:
        runs = self.computing_since is not None
        cpu = self.cpu + (now - self.computing_since if self.computing_since is not None else 0.0)
        letter = self.letter if self.letter != "S" else "R" if runs else "S"
        return ProcessState(letter, cpu, letter)
