"""The gate at work, in the daemon of position 0: what daemons say goes into its ledger, what follows is carried out.

The ledger (ledger.py) decides; here its word is written into the control page, where rank 0 reads it, and what must be
dropped or let go is told to all daemons that are connected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from ftrain_snapshot.control import ControlPage
from ftrain_snapshot.ledger import Exposure, Gate, Word
from ftrain_snapshot.log import log
from ftrain_snapshot.loop import Loop
from ftrain_snapshot.status import DaemonStatus, Levels
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Abandon, Announce, Drop, LetGo, PositionSealed, PositionStored, SkipNotice, ToGate
from ftrain_snapshot.words import SnapshotId

GATE = 0
"""The position whose daemon keeps the gate."""
START_PROTECTED_SECONDS = 10.0
"""How long the gate waits for the parity of the generation's start to be rebuilt before it lets snapshots begin."""


class GateKeeper:
    """The gate of one generation. Made, and closed, by the session of position 0."""

    def __init__(
        self,
        loop: Loop,
        page: ControlPage,
        gate: Gate,
        links: Mapping[int, Connection],
        *,
        drop: Callable[[SnapshotId], None],
        let_go: Callable[[SnapshotId], None],
    ) -> None:
        """``drop`` and ``let_go`` do here what the others are told to do."""
        self._page, self._gate, self._links = page, gate, links
        self._word: Word | None = None
        self._drop, self._let_go = drop, let_go
        self._exposure = Exposure()
        self._patience = loop.later(START_PROTECTED_SECONDS, self._give_up_start)

    def close(self) -> None:
        """The generation is over."""
        self._patience.cancel()

    # What is asked of it.

    def complete(self, status: DaemonStatus) -> DaemonStatus:
        """The daemon's status, with what only the gate knows."""
        return msgspec.structs.replace(
            status,
            gate=True,
            levels=self.levels(),
            exposed_seconds=self._exposure.seconds(time.monotonic()),
            exposed_last_seconds=self._exposure.last_seconds,
            pinned=self._gate.pin.snapshot,
            in_flight=self._gate.in_flight,
        )

    def levels(self) -> Levels:
        """The job's levels."""
        return self._gate.levels()

    def newest_of_positions(self) -> tuple[int, ...]:
        """What each position said it has sealed."""
        return self._gate.newest_of_positions()

    def pin(self, version: int) -> None:
        """This version, or the first safe one after it, is to go to storage, due or not."""
        self._gate.pin.ask(version)
        self._advance()

    def unpin(self, snapshot: SnapshotId) -> None:
        """It need not be kept for storage any more."""
        self._gate.pin.release(snapshot)
        self._advance()

    # Facts.

    def hear(self, position: int, message: ToGate) -> None:
        """A daemon, this one or another, says what it has come to hold, or will not."""
        gate = self._gate
        match message:
            case Announce():
                gate.arrived(position, message.holdings, linked=message.linked, kept=message.kept)
                for snapshot in message.skipped:
                    gate.skip(snapshot)
            case PositionSealed():
                gate.sealed(position, message.snapshot, message.digests)
            case PositionStored():
                gate.stored(position, message.snapshot)
            case Abandon():
                log("snapshot_abandoned", version=message.snapshot.version, reason=message.reason)
                gate.abandon(message.snapshot)
            case SkipNotice():
                gate.skip(message.snapshot)
        self._advance()

    def on_lost(self, position: int) -> None:
        """A daemon's connection is gone. What follows is done with the announcement that this daemon makes of it."""
        self._gate.left(position)

    def _give_up_start(self) -> None:
        self._gate.give_up_start()
        self._advance()

    # What follows.

    def _advance(self) -> None:
        word, dropped = self._gate.advance()
        for event, version in self._gate.pin.news():
            log(event, version=version)
        self._exposure.update(self._gate.exposed, time.monotonic())
        gone = self._gate.let_go()
        for snapshot in gone:  # before the gate opens: the slot may be given out now
            self._tell_all(LetGo(snapshot))
        if word != self._word:
            if word.open:
                self._page.open_gate(word.ticket, word.slot, word.floor)
            else:
                self._page.close_gate(spent=word.slot == -1)
            self._word = word
        for snapshot in dropped:
            self._drop(snapshot)
            self._tell_all(Drop(snapshot))
        for snapshot in gone:
            self._let_go(snapshot)

    def _tell_all(self, message: Drop | LetGo) -> None:
        for link in self._links.values():
            link.send(message)
