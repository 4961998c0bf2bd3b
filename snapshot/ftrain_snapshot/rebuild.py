"""Brings back the chunks of one snapshot that are damaged or missing on this node: its data, then the parity it keeps.

What is lost, and what is done with what is back, is in losses.py; how far a source is believed that failed in
rebuild_sources.py. Data goes first: parity is taken up when no more of it is on its way. A few pieces are in flight at
a time, and the next is chosen when one completes: memory is bounded, and each source is asked for what it can send.
Data is proved right by its own checksum; only where it is not are those of its sources looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from ftrain_snapshot.damage import Place, damages
from ftrain_snapshot.errors import ArenaTooSmall
from ftrain_snapshot.gather import Gather, Order
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Timer
from ftrain_snapshot.losses import Losses, Put
from ftrain_snapshot.manifest import CHUNK_BYTES, UnitDescriptor, sum_at
from ftrain_snapshot.node import Node
from ftrain_snapshot.rebuild_plan import Piece, Shape, Stuck, pieces
from ftrain_snapshot.rebuild_sources import Sources
from ftrain_snapshot.relay import PIECE_STRIPES_MAX
from ftrain_snapshot.wire import Mismatch
from ftrain_snapshot.words import SnapshotId

ORDERS_MAX = 4
"""Pieces in flight: together 16 MiB from each source, and as much scratch."""
SILENCE_SECONDS = 5.0
"""For how long a source that did not answer is not asked again."""
RELAYS_PAUSE_SECONDS = 1.0
"""For how long sources are asked one by one after a chain of them has failed; after one that was silent, for good."""


class Rebuild:
    """One snapshot on one node. Calls ``changed`` when something is complete, or nothing more can be done."""

    def __init__(
        self,
        node: Node,
        gather: Gather,
        snapshot: SnapshotId,
        able: Callable[[], Collection[int]],
        changed: Callable[[], None],
        *,
        urgent: bool = True,
    ) -> None:
        """``able``: which members can be asked now. ``urgent``: somebody waits for the data."""
        self.losses = Losses(node, snapshot)
        """What is to be brought back."""
        self.reason = ""
        """Why the last rebuilt bytes were wrong; empty if none were."""
        self.full = ""
        """Why there was no room for the last rebuilt bytes; empty if there was."""
        self.parity_waits = False
        """Own data is missing of which it is not known yet what: it goes first."""
        self.sources = Sources()
        """Whom to ask for what."""
        self._loop, self._links = node.loop, node.links
        self._group, self._position, self._codec = node.group, node.position, node.codec
        self._gather = gather
        self._snapshot = snapshot
        self._able = able
        self._changed = changed
        self._urgent = urgent
        self._doubtful: set[tuple[int, int]] = set()
        """(lane, rotation) of data that came out wrong: which source is damaged is found out from then on."""
        self._relays = True
        """False for a while once a chain has failed."""
        self._orders: set[_Stripes] = set()
        self._left: Counter[tuple[int, int]] = Counter()
        """Chunks that are not back yet, by (lane, rotation), as of the last plan and what was repaired since."""
        self._load: dict[int, int] = {}
        self._plan: Iterator[Piece | Stuck] = iter(())
        self._plan_of_parity: Iterator[Piece | Stuck] = iter(())
        self._soon: Timer | None = None
        self._closed = False

    def close(self) -> None:
        """Stop; what is not back stays noted as damaged."""
        self._closed = True
        if self._soon is not None:
            self._soon.cancel()
        for order in list(self._orders):
            self._gather.cancel(order)
        self._orders.clear()

    def impossible(self) -> str:
        """Why own data can never be rebuilt from what is known; empty if it may be."""
        if not self.losses.data_places():
            return ""
        if self._codec is None or self.full:
            return self.full or "there is no parity to rebuild it from"
        return self.losses.impossible(self.losses.sight(self.sources, self._able()))

    # What is done.

    def plan(self) -> None:
        """Start what can be started, after something has changed. Returns at once; the work follows."""
        if self._soon is None and not self._closed:
            self._soon = self._loop.later(0.0, self._plan_now)

    def _plan_now(self) -> None:
        self._soon = None
        if self._closed or self._codec is None:
            return
        busy = {place for order in self._orders for place in order.places()}
        self._left = Counter(place[:2] for place in self.losses.places())
        sight = self.losses.sight(self.sources, self._able())
        self._plan, self._plan_of_parity = (
            pieces(
                sight,
                self._position,
                [d for d in damages(places - busy) if d.lane in sight.shapes],
                self._load,
                PIECE_STRIPES_MAX,
            )
            for places in (self.losses.data_places(), self.losses.parity_places())
        )
        self._fill()

    def _fill(self) -> None:
        while len(self._orders) < ORDERS_MAX and not self._closed:
            piece = next(self._plan, None)
            if piece is None and (self.parity_waits or self._has_data_under_way()):
                return
            piece = piece or next(self._plan_of_parity, None)
            if piece is None:
                return
            if isinstance(piece, Piece):
                self._begin(piece)

    def _has_data_under_way(self) -> bool:
        return any(self.losses.is_data(order.piece.rotation) for order in self._orders)

    def _begin(self, piece: Piece) -> None:
        shape = self.losses.shape(piece.lane)
        if shape is None or self.losses.catalog() is None:
            self._unload(piece)
            return
        is_data = self.losses.is_data(piece.rotation)
        checked = not is_data or (piece.lane, piece.rotation) in self._doubtful
        is_long = shape.length(self._position, piece.rotation, piece.first) == CHUNK_BYTES  # sums are whole chunks
        relayed = self._relays and is_long and not checked
        units = self.losses.units(piece.lane)
        order = _Stripes(
            self, self._snapshot, _turned(piece) if relayed else piece, shape, units, self._position,
            urgent=self._urgent and is_data, checked=checked, relayed=relayed,
        )  # fmt: skip
        self._orders.add(order)
        self._gather.begin(order)

    def _unload(self, piece: Piece) -> None:
        for source in piece.sources:
            self._load[source.position] -= piece.stop - piece.first

    # What comes of an order.

    def take(self, order: _Stripes, stripe: int, data: memoryview) -> None:
        """A stripe's bytes: verified, and put where they belong."""
        lane, rotation = order.piece.lane, order.piece.rotation
        try:
            put = self.losses.put((lane, rotation, stripe), order.units, data)
        except ArenaTooSmall as error:
            self.full = str(error)
            self._abort(order)
            self._changed()
            return
        match put:
            case Put.DONE:
                self._left[lane, rotation] -= 1
            case Put.WRONG:
                self._is_wrong(order, stripe)
            case Put.UNWANTED:
                self._abort(order)

    def _abort(self, order: _Stripes) -> None:
        """The order is of no use any more."""
        self._gather.cancel(order)
        self._orders.discard(order)
        self._unload(order.piece)

    def _is_wrong(self, order: _Stripes, stripe: int) -> None:
        """A source is damaged; or, if they are sound, some parity is not of this snapshot."""
        self._abort(order)
        if not order.checked:
            self._doubtful.add((order.piece.lane, order.piece.rotation))
            self.plan()
            return
        self.reason = f"lane {order.piece.lane}: the rebuilt bytes do not have the checksum of the lost ones"
        log("rebuilt_wrong", version=self._snapshot.version, lane=order.piece.lane, rotation=order.piece.rotation)
        holders = self._group.parity_members(order.piece.rotation)
        for source in order.piece.sources:
            if source.position in holders and self._strike(source.position, order.piece, stripe):
                self._refute(order.piece, source.position, stripe)
        self.plan()
        self._changed()

    def _refute(self, piece: Piece, holder: int, stripe: int) -> None:
        """Let the holder know: else its parity counts as sound, and the same snapshot is chosen again and again."""
        log("parity_refuted", version=self._snapshot.version, holder=holder, rotation=piece.rotation, stripe=stripe)
        if (link := self._links.get(holder)) is not None:
            link.send(Mismatch(self._snapshot, piece.lane, piece.rotation, stripe, 0, refuted=True))

    def failed(self, order: _Stripes, source: int, damaged: int | None, *, silent: bool) -> None:
        """The order is over; plan anew without its source, or once more with it."""
        self._orders.discard(order)
        self._unload(order.piece)
        if order.relayed:  # which link of the chain it was is not known here: ask each for its part
            self._relays = False
            if not silent:  # two of them may have lost each other for a moment
                self._loop.later(RELAYS_PAUSE_SECONDS, self._relay_again)
        elif damaged is not None:
            self._strike(source, order.piece, damaged)
        elif silent:
            self.sources.silence(source)
            self._loop.later(SILENCE_SECONDS, lambda: self._ask_again(source))
        else:
            piece = order.piece
            self.sources.distrust(source, Damage(piece.lane, piece.rotation, piece.first, piece.stop))
        self.plan()
        self._changed()

    def _relay_again(self) -> None:
        self._relays = True

    def _ask_again(self, source: int) -> None:
        self.sources.ask_again(source)
        self.plan()

    def _strike(self, source: int, piece: Piece, stripe: int) -> bool:
        return self.sources.strike(source, piece.lane, piece.rotation, stripe)

    def done(self, order: _Stripes) -> None:
        """All of it is in place."""
        self._orders.discard(order)
        self._unload(order.piece)
        self._fill()
        if self._left[order.piece.lane, order.piece.rotation] <= 0:  # settling looks at all that is left
            self.settle(order.piece.lane)
        if not self._orders:  # also where a plan is under way: it may find nothing left to do, and say nothing
            self.plan()  # what was stuck may be possible now
            self._changed()

    def settle(self, lane: int) -> None:
        """Seal the lane if all its data is right; put on record what of its parity is complete."""
        if self.losses.settle(lane):
            self._changed()


class _Stripes(Order):
    """Own chunks of some stripes, being rebuilt."""

    def __init__(
        self,
        rebuild: Rebuild,
        snapshot: SnapshotId,
        piece: Piece,
        shape: Shape,
        units: Mapping[int, UnitDescriptor],
        position: int,
        *,
        urgent: bool,
        checked: bool,
        relayed: bool,
    ) -> None:
        super().__init__(snapshot, piece, urgent=urgent, checked=checked, relayed=relayed)
        self.units = units
        self._rebuild = rebuild
        self._shape = shape
        self._position = position
        self._data = shape.group.data_members(piece.rotation)

    def places(self) -> Iterator[Place]:
        return ((self.piece.lane, self.piece.rotation, s) for s in range(self.piece.first, self.piece.stop))

    def length(self, stripe: int) -> int:
        return self._shape.length(self._position, self.piece.rotation, stripe)

    def expected(self, position: int, stripe: int) -> int | None:
        if position not in self._data:
            return None
        return sum_at(self.units[position].sums, self._shape.group.chunk_of(position, self.piece.rotation, stripe))

    def on_stripe(self, stripe: int, data: memoryview) -> None:
        self._rebuild.take(self, stripe, data)

    def on_done(self) -> None:
        self._rebuild.done(self)

    def on_failed(self, source: int, damaged: int | None, *, silent: bool) -> None:
        self._rebuild.failed(self, source, damaged, silent=silent)


def _turned(piece: Piece) -> Piece:
    """The same with another source first: each piece in turn has another one send what all have summed up."""
    turn = (piece.first // PIECE_STRIPES_MAX + piece.rotation) % max(1, len(piece.sources))
    return msgspec.structs.replace(piece, sources=piece.sources[turn:] + piece.sources[:turn])
