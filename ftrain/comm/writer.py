"""Writes a ring from Python: for the recorder without a compiler, and for whoever needs a ring of a made-up job.

The same words in the same order as ``recorder.cpp``: a record gets its id last, a pending one keeps its slot among the
recent ones, a count goes up after what it counts was written. One lock orders the writers of this process; nothing is
called and nobody is waited for under it.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftrain.comm.ring import (
    CHANNEL,
    CHANNELS_MAX,
    COMMUNICATOR,
    COMMUNICATORS_MAX,
    MARK,
    MARKS_MAX,
    NONE,
    RECENT,
    RECORD,
    RECORDS_MAX,
    Identity,
    Layout,
    create_ring,
)

_LIVE = struct.Struct("<QQQqQQQQQQIIII")
_LIVE_AT = 128
_RECORD = struct.Struct("<8x6QqQIIHHiiIQ")
_MARK = struct.Struct("<8xqQQQQ")
_COMMUNICATOR = struct.Struct("<128s64sIII")
_CHANNEL = struct.Struct("<Ii")
_WORD = struct.Struct("<Q")
_PENDING, _FAILED = 1 << 63, 1 << 62
_EXIT_AT, _WAITED_AT, _REACHED_AT = (RECORD.fields[name][1] for name in ("exit", "waited_ns", "reached"))  # type: ignore[index]
_NO_DTYPE = 65535


@dataclass(frozen=True, kw_only=True)
class Call:
    """What an operation is called with, as its record tells it."""

    communicator: int
    """From `RingWriter.add_communicator`."""
    op: int
    bytes: int = 0
    elements: int = 0
    dtype: int = _NO_DTYPE
    root: int = -1
    """Global rank of the root, or of the peer of a send or receive (-1: anybody)."""
    tag: int = 0
    sends: bool | None = None
    """Whether this is a send, or a receive; None: a collective."""
    on_device: bool = False
    """The call only queues it: `RingWriter.reach` tells when the device has come to it."""


@dataclass(slots=True)
class Entered:
    """An operation that was entered, until it is left."""

    id: int
    places: tuple[int, ...]
    """Where its records are, in bytes."""
    counts: int
    """Where its communicator's or channel's count of completed ones is; -1: nobody counts it."""
    table_failed: int
    inside: bool
    """Its time counts as time in operations."""
    of_steps: bool
    """What it waits for, the training waits for."""
    queued_at: int = -1
    """Where it is counted until its device has reached it; -1: nowhere."""


class RingWriter:
    """One worker's ring, made anew. ``clock_ns``: CLOCK_MONOTONIC, unless the job is made up.

    Raises:
        OSError: there is no room for it, or no folder.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        processor_ns: Callable[[], int] = time.thread_time_ns,
    ) -> None:
        """``processor_ns``: processor time of the thread that calls."""
        self._clock_ns, self._processor_ns = clock_ns, processor_ns
        self._members_max = max(4096, 8 * identity.world_size)
        self._layout = Layout.of(self._members_max)
        fd = create_ring(path, identity)
        self._map = mmap.mmap(fd, self._layout.end)
        os.close(fd)
        self._lock = threading.RLock()
        self._head = self._marks = self._inside = self._waited_ns = self._failed = 0
        self._missed = [0, 0, 0, 0]
        """Communicators, channels, pending, members."""
        self._communicators = self._members = self._closed = 0
        self._channels: dict[tuple[int, int], int] = {}
        self._last_exit_ns = self._clock_ns()
        self._begun: tuple[int, int, int] | None = None
        """Of the stretch at hand: when, its thread, and the thread's processor time then."""
        self._under_way, self._last_end_ns = 0, 0
        """Of the operations of steps only."""
        self._marker: int | None = None
        """The thread that marks steps."""
        self._used: dict[int, int] = {}
        """By communicator: after how many marks that thread has used it last."""
        self._step = -1

    def add_communicator(self, name: str, members: tuple[int, ...] | None, description: str = "") -> int:
        """Register a process group; -1: there is no room for another one. ``members``: global ranks; None: unknown."""
        with self._lock:
            index = self._communicators
            if index == COMMUNICATORS_MAX:
                return -1
            known = members is not None and self._members + len(members) <= self._members_max
            self._missed[3] += not known
            at = self._layout.communicators + index * COMMUNICATOR.itemsize
            size = len(members or ())
            text = name.encode()[:128], description.encode()[:64]
            _COMMUNICATOR.pack_into(self._map, at, *text, size, self._members, known)
            if known and members is not None:
                struct.pack_into(f"<{size}I", self._map, self._layout.members + 4 * self._members, *members)
                self._members += size
            self._communicators += 1
            self._publish()
            return index

    def enter(self, call: Call) -> Entered:
        """An operation begins."""
        with self._lock:
            now, thread = self._clock_ns(), threading.get_native_id()
            of_steps = self._is_of_steps(call.communicator, thread)
            if of_steps:
                self._begin_stretch(now)
            gap = self._go_in(now, of_steps)
            number = self._head + 1
            channel, counts, recent = self._table(call)
            seq = self._count(counts) if counts >= 0 else 0
            places = [self._layout.records + number % RECORDS_MAX * RECORD.itemsize]
            if counts >= 0:
                slot = seq % RECENT if call.sends is None else seq % 4 + (0 if call.sends else 4)
                at = recent + slot * RECORD.itemsize
                if _WORD.unpack_from(self._map, at + _EXIT_AT)[0] & _PENDING:
                    self._missed[2] += 1
                else:
                    places.append(at)
            communicator = NONE if call.communicator < 0 else call.communicator
            body = (seq, now, number | _PENDING, gap, call.bytes, call.elements, self._step, 0)
            for at in places:
                self._put(at, 0)
                whose = (communicator, channel, call.op, call.dtype, call.root, call.tag, thread)
                _RECORD.pack_into(self._map, at, *body, *whose, number | _PENDING if call.on_device else 0)
                self._put(at, number)
            queued_at = self._queued_at(call, channel) if counts >= 0 and call.on_device else -1
            if queued_at >= 0:
                self._count(queued_at, store=True)
            if counts >= 0:
                self._put(counts, seq)
            self._head = number
            self._publish()
            failed = self._failed_at(call, channel)
            return Entered(number, tuple(places), counts + 8 if counts >= 0 else -1, failed, True, of_steps, queued_at)

    def reach(self, entered: Entered) -> None:
        """Its device has come to an operation."""
        with self._lock:
            for at in self._still(entered):
                self._put(at + _REACHED_AT, self._clock_ns())
            if entered.queued_at >= 0:
                self._put(entered.queued_at, _WORD.unpack_from(self._map, entered.queued_at)[0] - 1)
                entered.queued_at = -1

    def returned(self, entered: Entered) -> None:
        """The call is over, and what it has begun goes on without anybody in it (a work without a future)."""
        with self._lock:
            if entered.inside:
                entered.inside = False
                self._go_out(self._clock_ns(), entered.of_steps)
                self._publish()

    def wait_begins(self, entered: Entered) -> None:
        """Somebody waits for a work without a future."""
        with self._lock:
            now = self._clock_ns()
            if not entered.inside:
                entered.inside = True
                if entered.of_steps:
                    self._begin_stretch(now)
                self._go_in(now, entered.of_steps)
            for at in self._still(entered):
                self._put(at + _WAITED_AT, now)
            self._publish()

    def leave(self, entered: Entered, *, failed: bool = False) -> None:
        """An operation is over."""
        with self._lock:
            now = self._clock_ns()
            for at in self._still(entered):
                self._put(at + _EXIT_AT, now | (_FAILED if failed else 0))
            if entered.counts >= 0:
                self._count(entered.counts, store=True)
                if failed:
                    self._count(entered.table_failed, store=True)
            self._failed += failed
            if entered.inside:
                entered.inside = False
                self._go_out(now, entered.of_steps)
            self._publish()

    def mark(self, step: int) -> None:
        """Step ``step`` is done."""
        with self._lock:
            now = self._clock_ns()
            self._marks += 1
            self._step = step
            self._begin_stretch(now)
            self._marker = threading.get_native_id()
            at = self._layout.marks + self._marks % MARKS_MAX * MARK.itemsize
            self._put(at, 0)
            _MARK.pack_into(self._map, at, step, now, self._waited_ns, self._head, self._processor_ns())
            self._put(at, self._marks)
            self._publish()

    def close(self) -> None:
        """The worker ends in good order."""
        with self._lock:
            self._closed = 1
            self._publish()

    # ---- under the lock

    def _is_of_steps(self, communicator: int, thread: int) -> bool:
        """As ``Ring::is_of_steps`` in ring.hpp."""
        if self._marker is None:
            return True
        if thread == self._marker:
            self._used[communicator] = self._marks
            return True
        return self._used.get(communicator, -2) + 1 >= self._marks

    def _go_in(self, now: int, of_steps: bool) -> int:
        self._under_way += of_steps
        gap = now - self._last_exit_ns if self._inside == 0 else 0
        self._inside += 1
        return gap

    def _begin_stretch(self, now: int) -> None:
        """Add up what was waited for in the one that ends: something was under way, and nothing was computed."""
        thread, processor = threading.get_native_id(), self._processor_ns()
        if self._begun is not None:
            begun, its_thread, before = self._begun
            left = now if self._under_way > 0 else self._last_end_ns
            computed = processor - before if thread == its_thread else 0
            self._waited_ns += max(0, min(left - begun, now - begun - computed))
        self._begun = now, thread, processor

    def _go_out(self, now: int, of_steps: bool) -> None:
        if of_steps:
            self._under_way -= 1
            self._last_end_ns = now
        self._inside -= 1
        if self._inside == 0:
            self._last_exit_ns = now

    def _table(self, call: Call) -> tuple[int, int, int]:
        """The channel's index, where what was entered is counted (-1: nowhere), and where the recent ones are."""
        if call.communicator < 0:
            self._missed[0] += 1
            return NONE, -1, 0
        if call.sends is None:
            entry = self._layout.communicators + call.communicator * COMMUNICATOR.itemsize
            return NONE, entry + 208, self._layout.recent + call.communicator * RECENT * RECORD.itemsize
        key = (call.communicator, call.root)
        index = self._channels.get(key, len(self._channels))
        if index == CHANNELS_MAX:
            self._missed[1] += 1
            return NONE, -1, 0
        entry = self._layout.channels + index * CHANNEL.itemsize
        if key not in self._channels:
            self._channels[key] = index
            _CHANNEL.pack_into(self._map, entry, *key)
        counts = entry + (8 if call.sends else 24)
        return index, counts, self._layout.channels_recent + index * RECENT * RECORD.itemsize

    def _failed_at(self, call: Call, channel: int) -> int:
        if call.sends is None:
            return self._layout.communicators + max(call.communicator, 0) * COMMUNICATOR.itemsize + 224
        return self._layout.channels + (0 if channel == NONE else channel) * CHANNEL.itemsize + 40

    def _queued_at(self, call: Call, channel: int) -> int:
        if call.sends is None:
            return self._layout.communicators + call.communicator * COMMUNICATOR.itemsize + 232
        return self._layout.channels + channel * CHANNEL.itemsize + (48 if call.sends else 56)

    def _count(self, at: int, *, store: bool = False) -> int:
        value: int = _WORD.unpack_from(self._map, at)[0] + 1
        if store:
            self._put(at, value)
        return value

    def _still(self, entered: Entered) -> list[int]:
        """Where its records are that no newer one has taken over."""
        return [at for at in entered.places if _WORD.unpack_from(self._map, at)[0] == entered.id]

    def _publish(self) -> None:
        times = (self._head, self._marks, self._last_exit_ns, self._inside, self._waited_ns)
        tables = (self._communicators, len(self._channels), self._members, self._closed)
        live = _LIVE.pack(*times, *self._missed, self._failed, *tables)
        self._map[_LIVE_AT : _LIVE_AT + len(live)] = live

    def _put(self, at: int, word: int) -> None:
        # By a slice, which is copied as one word: struct would write into the map byte by byte.
        self._map[at : at + 8] = _WORD.pack(word)
