"""Fetches the sources of lost stripes and sums them up into what was lost, chunk by chunk as they arrive.

    order (one piece of a plan) ──> Fetch to each source, or to one for the sum of all; this node's own memory
    chunks, in order from each source ──> checksum, if the result has none ──> times its coefficient, into scratch
    stripe with all its sources ──> whoever ordered it ──> … the last one: done

Holds scratch for the stripes of its orders only; whoever orders bounds how many there are (a window), and orders more
as they complete. What fails is said with the source that failed, and the order is over: nothing is planned here.
"""

from __future__ import annotations

from typing import NamedTuple

from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Timer
from ftrain_snapshot.manifest import CHUNK_BYTES, checksum
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild_plan import Piece, Source
from ftrain_snapshot.rooms import Rooms
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed, Mismatch
from ftrain_snapshot.words import SnapshotId

SOURCE_TIMEOUT_SECONDS = 10.0
"""A source that has not sent what was asked for by then counts as one that cannot."""
SPARE_MAX = 16
"""Chunks of scratch that are kept for the next order: fresh memory costs more than what is done in it."""


class Order:
    """One piece that is being fetched, as whoever wants it sees it. Subclasses say what becomes of it."""

    keeps = False
    """It keeps what `on_stripe` is given, and gives it back (`Gather.give_back`)."""

    def __init__(
        self, snapshot: SnapshotId, piece: Piece, *, urgent: bool, checked: bool = True, relayed: bool = False
    ) -> None:
        """``checked``: sources are compared with their checksums; else whoever ordered proves the result.

        ``relayed``: the sources sum their parts up among themselves (relay.py); never together with ``checked``.
        """
        self.snapshot = snapshot
        self.piece = piece
        self.urgent = urgent
        self.checked = checked
        self.relayed = relayed

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


class _Question(NamedTuple):
    """What one member is asked for, and what its answers are multiplied with."""

    coefficient: int
    shares: tuple[Source, ...] = ()
    """The sum of these, rather than its part."""


class _Open:
    """An order under way."""

    def __init__(self, order: Order, timer: Timer, here: int) -> None:
        self.order = order
        self.timer = timer
        self.questions = _questions(order, here)
        self.received = dict.fromkeys(self.questions, order.piece.first)
        self.scratch: dict[int, tuple[bytearray, int]] = {}
        """By stripe: the sum so far, and how many answers are in it."""
        self.mine: dict[int, memoryview] = {}
        """By stripe: this node's own part, where it is in no sum yet."""
        self.left = order.piece.stop - order.piece.first


class Gather:
    """All fetching of one generation, on one node."""

    def __init__(self, node: Node) -> None:
        self._loop, self._links, self._position = node.loop, node.links, node.position
        self._codec, self._hurry = node.codec, node.hurry
        self._my_part = node.store.my_part
        self.rooms = Rooms()
        """Where what was fetched for an answer goes."""
        self.received_bytes = 0
        """Of what was asked for, from other nodes."""
        self._attempt = 0
        self._open: dict[int, _Open] = {}
        self._spare: list[bytearray] = []

    def close(self) -> None:
        """The generation is over: no order is answered any more."""
        for each in self._open.values():
            each.timer.cancel()
        self._open.clear()
        self._spare.clear()

    def begin(self, order: Order) -> None:
        """Fetch it. Its methods may be called before this returns (nothing to fetch, or nobody to ask)."""
        if order.urgent:
            self._hurry()
        self._attempt += 1
        attempt, piece = self._attempt, order.piece
        timer = self._loop.later(SOURCE_TIMEOUT_SECONDS, lambda: self._too_late(attempt))
        self._open[attempt] = each = _Open(order, timer, self._position)
        if not each.questions:
            for stripe in range(piece.first, piece.stop):
                if attempt in self._open:
                    self._finish_stripe(attempt, each, stripe, bytearray(order.length(stripe)))
            return
        for position in each.questions:
            if position != self._position and position not in self._links:
                self._fail(attempt, position, f"position {position} is not connected", silent=True)
                return
        for position, question in each.questions.items():
            if position != self._position:
                stripes = (piece.lane, piece.rotation, piece.first, piece.stop)
                fetch = Fetch(order.snapshot, *stripes, attempt, order.urgent, question.shares)
                self._links[position].send(fetch)
        if self._position in each.questions:
            self._read_here(attempt, each)

    def give_back(self, data: memoryview) -> None:
        """What an order kept is not needed any more."""
        if isinstance(data.obj, bytearray):
            self._keep(data.obj)

    def _keep(self, scratch: bytearray) -> None:
        if len(scratch) == CHUNK_BYTES and len(self._spare) < SPARE_MAX:
            self._spare.append(scratch)

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
            part = self._my_part(order.snapshot, piece.lane, piece.rotation, stripe)
            if part is None:
                self._fail(attempt, self._position, f"position {self._position} does not have it")
            elif not order.checked and len(each.questions) > 1:  # in one go with the first that comes
                each.mine[stripe] = part[0]
                each.received[self._position] = stripe + 1
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
        self.received_bytes += len(body)
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
        if len(each.questions) == 1 and each.questions[position].coefficient == 1 and len(body) >= length:
            self._hand_over(attempt, each, stripe, body[:length])
            return
        scratch, count = each.scratch.pop(stripe, (None, 0))
        if scratch is None:
            scratch = self._spare.pop() if self._spare else bytearray(CHUNK_BYTES)
        total = memoryview(scratch)[:length]
        if (mine := each.mine.pop(stripe, None)) is not None:
            count = self._begin_with_mine(each, position, mine, body, total)
        else:
            self._add(each, position, body[:length], total, first=count == 0)
            count += 1
        if count < len(each.questions):
            each.scratch[stripe] = scratch, count
        else:
            self._finish_stripe(attempt, each, stripe, scratch)

    def _begin_with_mine(
        self, each: _Open, position: int, mine: memoryview, body: memoryview, total: memoryview
    ) -> int:
        """This node's own part and another one: in one go, if both are whole."""
        if self._codec is not None and len(mine) == len(body) == len(total):
            row = (each.questions[self._position].coefficient, each.questions[position].coefficient)
            self._codec.combine((row,), (mine, body), (total,))
        else:
            self._add(each, self._position, mine[: len(total)], total, first=True)
            self._add(each, position, body[: len(total)], total, first=False)
        return 2

    def _add(self, each: _Open, position: int, body: memoryview, total: memoryview, *, first: bool) -> None:
        coefficient = each.questions[position].coefficient
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
        self._hand_over(attempt, each, stripe, memoryview(scratch)[: each.order.length(stripe)])
        if not each.order.keeps:
            self._keep(scratch)

    def _hand_over(self, attempt: int, each: _Open, stripe: int, data: memoryview) -> None:
        each.order.on_stripe(stripe, data)
        each.left -= 1
        if not each.left and attempt in self._open:
            self._end(attempt)
            each.order.on_done()

    def _end(self, attempt: int) -> None:
        each = self._open.pop(attempt)
        each.timer.cancel()
        for scratch, _ in each.scratch.values():
            self._keep(scratch)

    def _fail(
        self, attempt: int, source: int, reason: str, damaged: int | None = None, *, silent: bool = False
    ) -> None:
        order = self._open[attempt].order
        self._end(attempt)
        log("gather_failed", version=order.snapshot.version, lane=order.piece.lane, source=source, reason=reason)
        order.on_failed(source, damaged, silent=silent)


def _questions(order: Order, here: int) -> dict[int, _Question]:
    """Who is asked for what: each source for its part, or if they relay, one of them for the others' sum."""
    sources = order.piece.sources
    others = tuple(source for source in sources if source.position != here)
    if not order.relayed or len(others) < 2:
        return {source.position: _Question(source.coefficient) for source in sources}
    mine = {source.position: _Question(source.coefficient) for source in sources if source not in others}
    return mine | {others[0].position: _Question(1, others)}


def _is_sound(order: Order, position: int, stripe: int, body: memoryview, recorded: int) -> bool:
    expected = order.expected(position, stripe)
    return checksum(body) == (recorded if expected is None else expected)
