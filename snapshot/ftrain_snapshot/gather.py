"""Fetches the sources of lost stripes and sums them up into what was lost, chunk by chunk as they arrive.

    order (one piece of a plan) ──> Fetch to each source, or this node's own memory
    chunks, in order from each source ──> checksum, if the result has none ──> times its coefficient, into scratch
    stripe with all its sources ──> whoever ordered it ──> … the last one: done

Holds scratch for the stripes of its orders only; whoever orders bounds how many there are (a window), and orders more
as they complete. What fails is said with the source that failed, and the order is over: nothing is planned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ftrain_snapshot.codec import Codec
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.messages import SnapshotId
from ftrain_snapshot.rebuild_plan import Piece
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed, Mismatch

SOURCE_TIMEOUT_SECONDS = 10.0
"""A source that has not sent what was asked for by then counts as one that cannot."""

Part = tuple[memoryview, int]
"""A chunk in place, and its checksum on record."""


class Order:
    """One piece that is being fetched, as whoever wants it sees it. Subclasses say what becomes of it."""

    def __init__(self, snapshot: SnapshotId, piece: Piece, *, urgent: bool, checked: bool = True) -> None:
        """``checked``: sources are compared with their checksums; else whoever ordered proves the result."""
        self.snapshot = snapshot
        self.piece = piece
        self.urgent = urgent
        self.checked = checked

    def length(self, stripe: int) -> int:
        """How long what is wanted of that stripe is; what sources send beyond it is not needed."""
        raise NotImplementedError

    def expected(self, position: int, stripe: int) -> int | None:
        """The checksum that the position's part must have; None: only it knows (parity)."""
        raise NotImplementedError

    def on_stripe(self, stripe: int, data: memoryview) -> None:
        """One stripe's bytes, valid during the call. Stripes may come in any order."""
        raise NotImplementedError

    def on_done(self) -> None:
        """All stripes have been handed over."""
        raise NotImplementedError

    def on_failed(self, source: int, damaged: int | None, *, silent: bool) -> None:
        """It is over: ``source`` lacks its part, or stripe ``damaged`` came damaged, or it is ``silent``."""
        raise NotImplementedError


class _Open:
    """An order under way."""

    def __init__(self, order: Order, timer: Timer) -> None:
        self.order = order
        self.timer = timer
        self.received = {source.position: order.piece.first for source in order.piece.sources}
        self.scratch: dict[int, tuple[bytearray, int]] = {}
        """By stripe: the sum so far, and how many sources are in it."""
        self.left = order.piece.stop - order.piece.first


class Gather:
    """All fetching of one generation, on one node."""

    def __init__(
        self,
        loop: Loop,
        codec: Codec | None,
        position: int,
        links: Mapping[int, Connection],
        part: Callable[[SnapshotId, int, int, int], Part | None],
    ) -> None:
        """``part(snapshot, lane, rotation, stripe)`` is what this node itself holds."""
        self._loop = loop
        self._codec = codec
        self._position = position
        self._links = links
        self._part = part
        self._attempt = 0
        self._open: dict[int, _Open] = {}
        self._spare: list[bytearray] = []

    def close(self) -> None:
        """The generation is over: no order is answered any more."""
        for each in self._open.values():
            each.timer.cancel()
        self._open.clear()

    def begin(self, order: Order) -> None:
        """Fetch it. Its methods may be called before this returns (nothing to fetch, or nobody to ask)."""
        self._attempt += 1
        attempt, piece = self._attempt, order.piece
        timer = self._loop.later(SOURCE_TIMEOUT_SECONDS, lambda: self._too_late(attempt))
        self._open[attempt] = each = _Open(order, timer)
        if not piece.sources:
            for stripe in range(piece.first, piece.stop):
                if attempt in self._open:
                    self._finish_stripe(attempt, each, stripe, bytearray(order.length(stripe)))
            return
        for source in piece.sources:
            if source.position != self._position and source.position not in self._links:
                reason = f"position {source.position} is not connected"
                self._fail(attempt, source.position, reason, silent=True)
                return
        for source in piece.sources:
            if source.position != self._position:
                stripes = (piece.lane, piece.rotation, piece.first, piece.stop)
                self._links[source.position].send(Fetch(order.snapshot, *stripes, attempt, order.urgent))
        if any(source.position == self._position for source in piece.sources):
            self._read_here(attempt, each)

    def cancel(self, order: Order) -> None:
        """Nobody wants it any more."""
        for attempt, each in list(self._open.items()):
            if each.order is order:
                self._end(attempt)

    def _read_here(self, attempt: int, each: _Open) -> None:
        order, piece = each.order, each.order.piece
        for stripe in range(piece.first, piece.stop):
            if attempt not in self._open:
                return
            part = self._part(order.snapshot, piece.lane, piece.rotation, stripe)
            if part is None:
                self._fail(attempt, self._position, f"position {self._position} does not have it")
            else:
                self._take(attempt, each, self._position, stripe, *part)

    # What comes.

    def on_chunk(self, position: int, chunk: Chunk, body: memoryview) -> None:
        """Bytes that were asked for; those of an order that is over are ignored."""
        each = self._open.get(chunk.attempt)
        if each is None or position not in each.received:
            return
        piece = each.order.piece
        due = (each.order.snapshot, piece.lane, piece.rotation, each.received[position])
        if (chunk.snapshot, chunk.lane, chunk.rotation, chunk.stripe) != due or chunk.stripe >= piece.stop:
            self._fail(chunk.attempt, position, f"position {position} sent stripe {chunk.stripe} where {due} was due")
            return
        self._take(chunk.attempt, each, position, chunk.stripe, body, chunk.checksum)

    def on_fetch_failed(self, position: int, failed: FetchFailed) -> None:
        """A source does not have what it was asked for."""
        each = self._open.get(failed.attempt)
        if each is not None and position in each.received:
            self._fail(failed.attempt, position, failed.reason)

    def on_lost(self, position: int) -> None:
        """A source's connection is gone, and with it what it was sending."""
        for attempt, each in list(self._open.items()):
            if attempt in self._open and position in each.received:
                self._fail(attempt, position, f"the connection to position {position} was lost", silent=True)

    def _too_late(self, attempt: int) -> None:
        each = self._open.get(attempt)
        if each is not None:
            slowest = min(each.received, key=each.received.__getitem__)
            reason = f"position {slowest} did not send within {SOURCE_TIMEOUT_SECONDS:g} s"
            self._fail(attempt, slowest, reason, silent=True)

    def _take(self, attempt: int, each: _Open, position: int, stripe: int, body: memoryview, recorded: int) -> None:
        order, piece = each.order, each.order.piece
        if order.checked and not _is_sound(order, position, stripe, body, recorded):
            if position in self._links:
                self._links[position].send(Mismatch(order.snapshot, piece.lane, piece.rotation, stripe, attempt))
            reason = f"lane {piece.lane}, rotation {piece.rotation}, stripe {stripe} of position {position} is damaged"
            self._fail(attempt, position, reason, stripe)
            return
        each.received[position] = stripe + 1
        length = order.length(stripe)
        scratch, count = each.scratch.pop(stripe, (None, 0))
        if scratch is None:
            scratch = self._spare.pop() if self._spare else bytearray(CHUNK_BYTES)
        self._add(each, position, body[:length], memoryview(scratch)[:length], first=count == 0)
        if count + 1 < len(piece.sources):
            each.scratch[stripe] = scratch, count + 1
        else:
            self._finish_stripe(attempt, each, stripe, scratch)

    def _add(self, each: _Open, position: int, body: memoryview, total: memoryview, *, first: bool) -> None:
        coefficient = next(s.coefficient for s in each.order.piece.sources if s.position == position)
        head = total[: len(body)]
        if first and coefficient == 1:
            head[:] = body
        elif self._codec is None:
            raise ValueError("there is no parity, and so nothing to decode")
        elif first:
            self._codec.combine(((coefficient,),), (body,), (head,))
        else:
            self._codec.combine(((1, coefficient),), (head, body), (head,))
        if first and len(body) < len(total):
            total[len(body) :] = bytes(len(total) - len(body))

    def _finish_stripe(self, attempt: int, each: _Open, stripe: int, scratch: bytearray) -> None:
        each.order.on_stripe(stripe, memoryview(scratch)[: each.order.length(stripe)])
        if len(scratch) == CHUNK_BYTES:
            self._spare.append(scratch)
        each.left -= 1
        if not each.left and attempt in self._open:
            self._end(attempt)
            each.order.on_done()

    def _end(self, attempt: int) -> None:
        each = self._open.pop(attempt)
        each.timer.cancel()
        self._spare += [scratch for scratch, _ in each.scratch.values()]
        if not self._open:
            self._spare.clear()

    def _fail(
        self, attempt: int, source: int, reason: str, damaged: int | None = None, *, silent: bool = False
    ) -> None:
        order = self._open[attempt].order
        self._end(attempt)
        log("gather_failed", version=order.snapshot.version, lane=order.piece.lane, source=source, reason=reason)
        order.on_failed(source, damaged, silent=silent)


def _is_sound(order: Order, position: int, stripe: int, body: memoryview, recorded: int) -> bool:
    expected = order.expected(position, stripe)
    return checksum(body) == (recorded if expected is None else expected)
