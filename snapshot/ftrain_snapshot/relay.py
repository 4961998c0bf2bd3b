"""Sums of several members' parts, handed on from one to the next, so that who rebuilds receives them once.

    A ──its part──> B ──A + B──> C ──A + B + C──> who asked

A node that lost its bytes would otherwise receive k parts for each of its own, through one link and one processor.
In a chain every link carries each byte once, and the sums are made where the parts lie (repair pipelining, R. Li et
al., USENIX ATC '17). Whoever asks names the chain, first the member that it asks: that one asks the next for the rest.
Only who asked can prove a sum, by the checksum of what was lost; if it is wrong, or a link of the chain fails, that
one goes on without chains. A link that is only coming up has not failed: whoever asks may be connected to all of them
before they are to each other, so a sum waits for its next link.
"""

from __future__ import annotations

from ftrain_snapshot.gather import Gather, Order
from ftrain_snapshot.loop import Timer
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild_plan import Piece
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed

PIECE_STRIPES_MAX = 4
"""Longest piece that is relayed; its stripes are in memory while they are summed up."""
OPEN_MAX = 64
"""Sums under way for others at once: 256 MiB at most."""
LINK_SECONDS_MAX = 0.25
"""How long a sum waits for the link to the next of its chain, which takes milliseconds, or one dial more."""


class Relays:
    """Answers, of one generation on one node, to who asks for sums."""

    def __init__(self, node: Node, gather: Gather) -> None:
        self._node = node
        self._gather = gather
        self._open: set[_Sum] = set()
        self._waiting: dict[_Sum, Timer] = {}
        """Those whose next link is not there yet."""

    def close(self) -> None:
        """The generation is over."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def on_link(self, position: int) -> None:
        """A member of the group is connected: what waited for it begins."""
        for order in [each for each in self._waiting if each.next == position]:
            self._begin(order)

    def answer(self, position: int, fetch: Fetch) -> None:
        """Send ``position`` the sums of ``fetch.shares``, or say why not."""
        link = self._node.links[position]
        urgent = fetch.urgent and fetch.snapshot == self._node.membership.restore
        if reason := self._objection(position, fetch):
            link.send_bulk(FetchFailed(fetch.attempt, reason), memoryview(b""), urgent=urgent)
            return
        order = _Sum(fetch, link, self._gather, self._open, urgent=urgent)
        self._open.add(order)
        self._waiting[order] = self._node.loop.later(LINK_SECONDS_MAX, lambda: self._begin(order))
        if order.next in self._node.links:
            self._begin(order)

    def _begin(self, order: _Sum) -> None:
        self._waiting.pop(order).cancel()
        self._gather.begin(order)

    def _objection(self, position: int, fetch: Fetch) -> str:
        chain = [share.position for share in fetch.shares]
        members = set(self._node.group.members) - {position}
        if chain[0] != self._node.position or len(chain) < 2 or len(set(chain)) < len(chain) or set(chain) - members:
            return f"positions {chain} are no chain from position {self._node.position}"
        if not 0 < fetch.stop - fetch.first <= PIECE_STRIPES_MAX:
            return f"{fetch.stop - fetch.first} stripes are not relayed at once"
        if len(self._open) >= OPEN_MAX:
            return f"position {self._node.position} is relaying as much as it can"
        return ""


class _Sum(Order):
    """A sum that is being made for another member."""

    keeps = True

    def __init__(self, fetch: Fetch, link: Connection, gather: Gather, others: set[_Sum], *, urgent: bool) -> None:
        piece = Piece(fetch.lane, fetch.rotation, fetch.first, fetch.stop, fetch.shares)
        super().__init__(fetch.snapshot, piece, urgent=urgent, checked=False, relayed=True)
        self.next = fetch.shares[1].position
        self._attempt = fetch.attempt
        self._link, self._gather, self._others = link, gather, others

    def length(self, stripe: int) -> int:
        return CHUNK_BYTES  # whoever asks knows what it needs of it

    def on_stripe(self, stripe: int, data: memoryview) -> None:
        chunk = Chunk(self.snapshot, self.piece.lane, self.piece.rotation, stripe, 0, self._attempt)
        self._link.send_bulk(chunk, data, urgent=self.urgent, on_sent=lambda: self._gather.give_back(data))

    def on_done(self) -> None:
        self._others.discard(self)

    def on_failed(self, source: int, damaged: int | None, *, silent: bool) -> None:
        self._others.discard(self)
        reason = f"position {source} did not give its part of a sum"
        self._link.send_bulk(FetchFailed(self._attempt, reason), memoryview(b""), urgent=self.urgent)
