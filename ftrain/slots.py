"""Which slot a snapshot goes into, agreed by all ranks without asking a daemon.

The gate's daemon opens a word in shared memory when a slot is free (never one of the newest complete snapshots).
Rank 0 reads it at each due commit, takes the ticket if it is a new one, and publishes the slot in the generation's
store; the other ranks read it there. All ranks so capture the same versions into the same slots. A closed gate is
published too: the version is skipped by all.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from ftrain.errors import PeerSilent

KEEP_KEYS = 64
"""Published slots kept in the store: rank 0 may run ahead of the others by so many snapshots."""
POLL_SECONDS_MIN = 0.0001
POLL_SECONDS_MAX = 0.005
_CLOSED = b"-"


class Store(Protocol):
    """The part of torch's store that is used."""

    def set(self, key: str, value: str) -> None:
        """Publish."""

    def get(self, key: str) -> bytes:
        """Read; blocks while the key is missing."""

    def check(self, keys: list[str]) -> bool:
        """All these keys are there."""

    def delete_key(self, key: str) -> bool:
        """Forget."""


class Gate(Protocol):
    """The part of the control page that is used."""

    def gate(self) -> tuple[int, int]:
        """(ticket, slot); slot -1: closed."""


class SlotChooser:
    """Rank 0 decides (it is given the gate), the others follow."""

    def __init__(self, store: Store, gate: Gate | None, *, timeout_seconds: float = 1800.0) -> None:
        self._store = store
        self._gate = gate
        self._timeout_seconds = timeout_seconds
        # A ticket that is open when a generation begins may be an old one, used before: that is for the daemons,
        # who close the gate when they are configured anew.
        self._last_ticket = -1
        self._published: deque[str] = deque()

    def choose(self, version: int, *, possible: bool = True, patience_seconds: float = 0.0) -> int | None:
        """The slot for this version; None: skip it. ``possible``: rank 0 can be captured at all.

        Rank 0 waits for a closed gate up to ``patience_seconds``. Raises PeerSilent if it publishes nothing for
        ``timeout_seconds``.
        """
        key = f"ftrain/snapshot/{version}"
        if self._gate is None:
            word = self._follow(key)
        else:
            word = self._decide(patience_seconds) if possible else _CLOSED
            self._store.set(key, word.decode())
            self._published.append(key)
            if len(self._published) > KEEP_KEYS:
                self._store.delete_key(self._published.popleft())
        return None if word == _CLOSED else int(word)

    def _decide(self, patience_seconds: float) -> bytes:
        assert self._gate is not None
        deadline = time.monotonic() + patience_seconds
        while True:
            ticket, slot = self._gate.gate()
            if slot >= 0 and ticket != self._last_ticket:
                self._last_ticket = ticket
                return str(slot).encode()
            if time.monotonic() >= deadline:
                return _CLOSED
            time.sleep(POLL_SECONDS_MAX)  # the gate is a word in shared memory, which nobody can be woken by

    def _follow(self, key: str) -> bytes:
        # Polled, not waited for: a wait inside the store cannot be interrupted by a signal, and complains when it
        # times out.
        deadline = time.monotonic() + self._timeout_seconds
        pause = POLL_SECONDS_MIN
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise PeerSilent(f"rank 0 did not come to {key} within {self._timeout_seconds:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS_MAX)
        return self._store.get(key)
