"""One capture under way: what commit copies at once, and what follows in the background until it is sealed.

Chunk by chunk, in order: the pieces of a chunk that may have changed are copied into the home that the region has
for it, its checksum is made while it is in cache, and it is published; the daemon sends it on while later ones are
being copied (DataStates-LLM, arXiv 2406.10707, for the lazy part). A chunk none of whose tensors has changed since
the reference, the last sealed capture, is kept: not copied, but read, and its checksum compared.

The guard. A snapshot is dropped, never sealed, and the tensors concerned are named, when

- a lazy tensor's ``_version`` is not that of the commit any more once it has been copied, or its memory has gone;
- the words that were sampled of it at commit are not in the copy (samples.py);
- a kept chunk's bytes are not those of the reference: something changed it that leaves no mark, a write by ``.data``
  or by a library of its own.

What it cannot see: a write by ``.data``, after commit and before the copy, that changes only a few elements of a
large tensor. Before the next optimizer step everything has been copied and compared: `wait_copied`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from itertools import count
from typing import Any, Protocol

import numpy as np
import xxhash
from torch import Tensor

from ftrain.copier import Pins, copier_for
from ftrain.marks import Mark, Marks
from ftrain.plan import Flags, Plan, Row
from ftrain.samples import Samples
from ftrain_snapshot.lane import Lane, Region
from ftrain_snapshot.manifest import CHUNK_BYTES, Header, checksum, chunk_bytes
from ftrain_snapshot.words import SnapshotId

PUBLISH_BYTES = 8 << 20
"""The daemon is told of new chunks so often."""
NICENESS = 5
"""The background thread's: below training, yet with enough of busy cores (a quarter of one that training fills) to have
copied before the next step. With 13 it has a twentieth, and training often makes most of the copy itself, while it
waits (scripts/bench/snapshot.py --only stall)."""
WAIT_SECONDS_MAX = 600.0
"""Copying takes a fraction of a second; a machine that swaps takes longer."""


class Line(Protocol):
    """The part of a daemon's client that is needed here."""

    def captured(self, lane: int, snapshot: SnapshotId) -> None:
        """More chunks are published."""

    def sealed(self, lane: int, snapshot: SnapshotId) -> None:
        """All is there."""

    def skip(self, snapshot: SnapshotId) -> None:
        """This rank gives the snapshot up."""


class Kit:
    """What all flights of one plan work with."""

    def __init__(self, plan: Plan, pins: Pins) -> None:
        self.plan, self.marks = plan, Marks(plan)
        self.samples, self.copier = Samples(plan), copier_for(plan.device, pins)


class Flight:
    """See the top of this file. `depart` on the training thread, `run` on another one."""

    def __init__(
        self, kit: Kit, mark: Mark, changed: Flags, lane: Lane, header: Header, reference: Region | None, line: Line
    ) -> None:
        """``changed``: what ``mark`` tells from that of the ``reference``, the last sealed capture; None: all has."""
        self.kit, self.mark = kit, mark
        self.plan = plan = kit.plan
        self.header = header
        self.caught: set[int] = set()
        """Tensors whose marks did not tell the truth."""
        self.damaged = False
        """The reference's own bytes are not what was recorded."""
        self.error: Exception | None = None
        self._lane, self._reference, self._line = lane, reference, line
        self._samples, self._copier = kit.samples, kit.copier
        self._region = lane.regions[header.snapshot.slot]
        chunks = header.chunks
        self._fresh = np.ones(chunks, bool)
        whole = plan.data_bytes // CHUNK_BYTES  # a chunk that tail or manifest begin in changes always
        self._copier.begin(lane.homes)
        if self._copier.is_queued:
            changed = changed | self._copier.unsure(plan, mark, changed)
        if reference is not None:
            self._fresh[:whole] = plan.chunks_of(changed)[:whole]
        self._placed: dict[int, int] = {}
        self._next = count()
        self._done = bytearray(chunks)
        self._left = chunks
        self._lock = threading.Lock()
        self._processed = threading.Event()
        self._is_left = False
        """The training thread was interrupted while it copied a chunk; the other one makes it again."""
        self._compared = False
        self._queued = threading.Event()
        self._tokens: dict[int, Any] = {}
        self._copied = threading.Event()
        self._over = threading.Event()
        self._published = self._told_bytes = 0
        # The last chunk, which may be shorter, is among them always.
        self.copied_bytes = int(self._fresh.sum()) * CHUNK_BYTES - (chunks * CHUNK_BYTES - header.unit_bytes)

    @cached_property
    def _versions(self) -> list[int]:
        """Asked for in the background, most of the time."""
        return self.mark.versions.tolist()

    @property
    def sealed(self) -> bool:
        """It has come to a good end."""
        return self._over.is_set() and self.good

    @property
    def good(self) -> bool:
        """Nothing speaks against it so far."""
        return self.error is None and not (self.caught or self.damaged)

    def depart(self, tail: list[tuple[Tensor, list[Row]]], manifest: bytes) -> None:
        """Copy all that the caller may change when this returns."""
        self._region.begin(self.header)
        self._samples.take()
        plan = self.plan
        for chunk in np.flatnonzero(self._fresh[: len(plan.rows)] & plan.has_eager).tolist():
            self._copier.copy(plan, plan.eager_rows[chunk], self._place(chunk))
        for tensor, rows in tail:
            for row in rows:
                self._copier.copy_tail(tensor, row, self._place(row.offset // CHUNK_BYTES))
        for chunk in range(self.header.manifest_offset // CHUNK_BYTES, self.header.chunks):
            self._place(chunk)
        self._region.put(self.header.manifest_offset, manifest)
        self._copier.end_eager()

    def run(self) -> None:
        """Copy the rest, compare, seal or drop. Never raises: `error` has it."""
        try:
            if self._copier.is_queued:
                self._queue_all()
            self._process_all()
            if not self.error:
                self._judge()
            self._copied.set()
            self._end()
        except Exception as error:  # whatever it is, training goes on without this snapshot
            self.error = error
        finally:
            self._copied.set()
            self._over.set()

    def wait_copied(self) -> None:
        """Return when the tensors may be changed; copies some of them itself rather than idle."""
        if self._copied.is_set():
            return
        if self._copier.is_queued:
            _wait(self._queued)
            self._compare_versions(last=True)
            self._copier.order_training()
            return
        if not self._is_left:
            try:
                while self._process_next():
                    pass
            except BaseException:  # a signal's: the generation is over, or the process is to end
                self._is_left = True
                self._processed.set()
                raise
        _wait(self._copied)

    def wait_over(self) -> None:
        """Return when it is sealed or dropped."""
        self.wait_copied()
        _wait(self._over)

    # Chunks.

    def _place(self, chunk: int) -> int:
        home = self._placed.get(chunk)
        if home is None:
            home = self._placed[chunk] = self._region.place(chunk)
        return home

    def _queue_all(self) -> None:
        """Have the device begin with all copies at once, so that it can order the training stream behind them."""
        try:
            for chunk in np.flatnonzero(self._fresh).tolist():
                self._copy_rows(chunk)
                self._tokens[chunk] = self._copier.queued()
        finally:
            self._queued.set()

    def _compare_versions(self, *, last: bool = False) -> None:
        """A write that was counted since commit may have met the device's copy half way.

        ``last``: training is about to write, and in order. Whoever comes first compares, the other one trusts it.
        """
        with self._lock:
            if not self._compared:
                moved = np.flatnonzero(self.plan.versions() != self.mark.versions).tolist()
                self.caught |= {index for index in moved if self.plan.lazy[index]}
            self._compared |= last or self._processed.is_set()

    def _process_all(self) -> None:
        while self._process_next():
            self._publish()
        _wait(self._processed)
        for chunk in [chunk for chunk, done in enumerate(self._done) if not done]:
            self._process(chunk)
        self._publish()

    def _process_next(self) -> bool:
        chunk = next(self._next)
        if chunk >= len(self._done):
            return False
        self._process(chunk)
        with self._lock:
            self._left -= 1
            if not self._left:
                self._processed.set()
        return True

    def _process(self, chunk: int) -> None:
        try:
            if self.error is None:
                if self._fresh[chunk]:
                    self._copy(chunk)
                else:
                    self._verify(chunk)
        except Exception as error:  # as in run
            self.error = error
        self._done[chunk] = 1

    def _copy_rows(self, chunk: int) -> None:
        plan, home = self.plan, self._place(chunk)
        rows = plan.lazy_rows[chunk] if chunk < len(plan.rows) else []
        gone = self._gone(rows)
        self.caught |= gone
        if not gone:
            self._copier.copy(plan, rows, home)
        for row in rows:
            if plan.version(row.tensor) != self._versions[row.tensor]:
                self.caught.add(row.tensor)

    def _gone(self, rows: list[Row]) -> set[int]:
        """The tensors whose memory has been given back since: it must not be read."""
        flats = ((row.tensor, self.plan.flats[row.tensor]) for row in rows)
        return {i for i, flat in flats if flat is not None and flat.data_ptr() != self.plan.addresses[i]}

    def _copy(self, chunk: int) -> None:
        if chunk in self._tokens:
            self._copier.wait(self._tokens.pop(chunk))
        else:
            self._copy_rows(chunk)
        bytes_ = self._region.chunk(chunk, chunk_bytes(self.header.unit_bytes, chunk))
        self._region.record(chunk, checksum(bytes_))

    def _verify(self, chunk: int) -> None:
        assert self._reference is not None
        self._region.keep(chunk, self._reference)
        rows = self.plan.rows[chunk]
        if gone := self._gone(rows):
            self.caught |= gone
            return
        kept = self._reference.chunk(chunk, chunk_bytes(self.header.unit_bytes, chunk))
        live = [self.plan.views[row.tensor][row.start : row.start + row.length] for row in rows]
        rows, live = _here(rows, live)
        if not rows:
            return  # all on a device, which compares for itself
        if checksum_with_gaps(kept, rows, live, chunk * CHUNK_BYTES) == self._reference.sum(chunk):
            return
        differing = set()
        for row, view in zip(rows, live, strict=True):
            at = row.offset - chunk * CHUNK_BYTES
            if not np.array_equal(np.frombuffer(view, np.uint8), np.frombuffer(kept[at : at + row.length], np.uint8)):
                differing.add(row.tensor)
        self.caught |= differing
        self.damaged |= not differing

    def _publish(self) -> None:
        done, start = self._done, self._published
        while self._published < len(done) and done[self._published]:
            self._published += 1
        if self._published == start:
            return
        self._region.publish(self._published, self.copied_bytes)
        if (self._published * CHUNK_BYTES - self._told_bytes) >= PUBLISH_BYTES and self._published < len(done):
            self._told_bytes = self._published * CHUNK_BYTES
            self._line.captured(self._lane.lane, self.header.snapshot)

    # The end.

    def _judge(self) -> None:
        homes = np.fromiter(map(self._region.home, range(len(self.plan.rows))), np.int64, len(self.plan.rows))
        self.caught |= self._samples.differing(self._copier.homes, homes)
        if self._copier.is_queued:
            self._compare_versions()
            self.caught |= self._copier.strayed()

    def _end(self) -> None:
        if self.good:
            self._region.seal()
            self._line.sealed(self._lane.lane, self.header.snapshot)
        else:
            self._line.skip(self.header.snapshot)


def _here(rows: list[Row], live: list[memoryview]) -> tuple[list[Row], list[memoryview]]:
    """Those of the pieces that are in main memory."""
    pairs = [(row, view) for row, view in zip(rows, live, strict=True) if len(view)]
    return [row for row, _ in pairs], [view for _, view in pairs]


def checksum_with_gaps(kept: memoryview, rows: list[Row], live: list[memoryview], start: int) -> int:
    """The chunk's checksum if the tensors had their live bytes; what lies between them is as it was kept."""
    if len(rows) == 1 and rows[0].length == len(kept):
        return checksum(live[0])
    hasher = xxhash.xxh3_64()
    end = 0
    for row, view in zip(rows, live, strict=True):
        at = row.offset - start
        if at > end:
            hasher.update(kept[end:at])
        hasher.update(view)
        end = at + row.length
    hasher.update(kept[end:])
    return hasher.intdigest()


def _wait(event: threading.Event) -> None:
    if not event.wait(WAIT_SECONDS_MAX):
        raise RuntimeError(f"a snapshot's copy did not end within {WAIT_SECONDS_MAX:g} s: is this machine swapping?")


class Crew:
    """The background thread that flights run on, one after the other; started with the first."""

    def __init__(self) -> None:
        self._flight: Flight | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def take(self, flight: Flight) -> None:
        """Run this one; the last must be over."""
        if self._thread is None:
            # A daemon: a process that ends without `close` must not wait for it.
            self._thread = threading.Thread(target=self._work, name="ftrain-capture", daemon=True)
            self._thread.start()
        with self._wake:
            self._flight = flight
            self._wake.notify()

    def close(self) -> None:
        """Wait for the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(WAIT_SECONDS_MAX)

    def _work(self) -> None:
        with suppress(OSError):  # of this thread alone, on Linux; whoever waits for the copies makes them itself
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        run: Callable[[], None]
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._flight is not None or self._closing)
                if self._flight is None:
                    return
                run, self._flight = self._flight.run, None
            run()
            del run
