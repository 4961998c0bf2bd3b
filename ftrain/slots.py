"""Which slot a snapshot goes into, agreed by all ranks without asking a daemon.

The gate's daemon opens a word in shared memory when a slot is free (never one of the newest complete snapshots).
Rank 0 reads it at each due commit, takes the ticket if it is a new one, and publishes in the generation's store how
far it has come and which version it has opened last; the other ranks read it there, and skip all other versions. All
ranks so capture the same versions into the same slots.

One key is enough, however far rank 0 runs ahead (ranks that accumulate gradients do not wait for each other): the
gate gives no new ticket before all ranks have sealed the last one's snapshot, or somebody has given it up.

With it goes how rank 0 has laid out what all ranks hold the same. The gate drops snapshots that the ranks laid out in
different ways, for their shares are not of one whole; who follows sees why, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ftrain.errors import PeerSilent

POLL_SECONDS_MIN = 0.0001
POLL_SECONDS_MAX = 0.005
NOTE_SECONDS = 0.2
"""Whoever waits for longer says so."""
_KEY = "ftrain/snapshot/newest"
_TOLD = "ftrain/snapshot/unlike"


class _Word(NamedTuple):
    """What rank 0 publishes."""

    decided: int
    """The newest version that it has decided on."""
    opened: int
    """The newest that is captured, into ``slot``."""
    slot: int
    before: int = -1
    """The one that it captured before that,"""
    layout: int = 0
    """and the digest of what it had laid out then."""


class Store(Protocol):
    """The part of torch's store that is used."""

    def set(self, key: str, value: str) -> None:
        """Publish."""

    def get(self, key: str) -> bytes:
        """Read; blocks while the key is missing."""

    def check(self, keys: list[str]) -> bool:
        """All these keys are there."""

    def add(self, key: str, amount: int) -> int:
        """Count, all ranks together; the sum."""


class Gate(Protocol):
    """The part of the control page that is used."""

    def gate(self) -> tuple[int, int]:
        """(ticket, slot); slot -1: closed."""


class SlotChooser:
    """Rank 0 decides (it is given the gate), the others follow."""

    def __init__(
        self,
        store: Store,
        gate: Gate | None,
        *,
        timeout_seconds: float = 1800.0,
        note_wait: Callable[[], None] = lambda: None,
        note_hold: Callable[[], None] = lambda: None,
    ) -> None:
        """``note_wait`` is called when rank 0 lets this rank wait, once for each version; ``note_hold`` when that is
        over."""
        self._store = store
        self._gate = gate
        self._note_wait, self._note_hold = note_wait, note_hold
        self._timeout_seconds = timeout_seconds
        # A ticket that is open when a generation begins may be an old one, used before: that is for the daemons,
        # who close the gate when they are configured anew.
        self._last_ticket = -1
        self._word = _Word(-1, -1, -1)
        self._captured: tuple[int, int] = (-1, 0)

    def choose(self, version: int, *, possible: bool = True, patience_seconds: float = 0.0) -> int | None:
        """The slot for this version; None: skip it. ``possible``: rank 0 can be captured at all.

        Rank 0 waits for a closed gate up to ``patience_seconds``. Raises PeerSilent if it publishes nothing for
        ``timeout_seconds``.
        """
        if self._gate is None:
            self._follow(version)
        else:
            slot = self._decide(patience_seconds) if possible else None
            if slot is None:
                self._word = self._word._replace(decided=version)
            else:
                self._word = _Word(version, version, slot, *self._captured)
            self._store.set(_KEY, " ".join(map(str, self._word)))
        return self._word.slot if self._word.opened == version else None

    def capture(self, version: int, layout: int) -> bool:
        """This rank captures ``version`` now, laid out like this.

        True, once in a generation and on one rank only: its last capture was laid out otherwise than rank 0's.
        """
        (before, own), self._captured = self._captured, (version, layout)
        is_unlike = before >= 0 and self._word.before == before and self._word.layout != own
        return is_unlike and self._store.add(_TOLD, 1) == 1

    def _decide(self, patience_seconds: float) -> int | None:
        assert self._gate is not None
        deadline = time.monotonic() + patience_seconds
        while True:
            ticket, slot = self._gate.gate()
            if slot >= 0 and ticket != self._last_ticket:
                self._last_ticket = ticket
                return slot
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS_MAX)  # the gate is a word in shared memory, which nobody can be woken by

    def _follow(self, version: int) -> None:
        # Polled, not waited for: a wait inside the store cannot be interrupted by a signal, and complains when it
        # times out.
        begun = time.monotonic()
        pause, noted = POLL_SECONDS_MIN, False
        while self._word.decided < version:
            if self._store.check([_KEY]):
                self._word = _Word(*map(int, self._store.get(_KEY).split()))
                if self._word.decided >= version:
                    break
            waited_seconds = time.monotonic() - begun
            if waited_seconds > NOTE_SECONDS and not noted:
                noted = True
                self._note_wait()
            if waited_seconds > self._timeout_seconds:
                raise PeerSilent(f"rank 0 did not come to version {version} within {self._timeout_seconds:.0f} s")
            time.sleep(pause)  # as above
            pause = min(2 * pause, POLL_SECONDS_MAX)
        if noted:
            self._note_hold()
