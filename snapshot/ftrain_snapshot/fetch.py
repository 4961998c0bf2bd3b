"""Asking another daemon for its part of stripes, and answering.

Every question has a number of its own, and every answer bears it: answers to a question that has been given up are
ignored. Whoever asks says what is to be done with each chunk, and what if there is none. The numbers are negative:
positive ones are those of who rebuilds (gather.py).
"""

from __future__ import annotations

from collections.abc import Callable

from ftrain_snapshot.node import Node
from ftrain_snapshot.store import Store
from ftrain_snapshot.transport import Connection
from ftrain_snapshot.wire import Chunk, Fetch, FetchFailed
from ftrain_snapshot.words import SnapshotId

OnChunk = Callable[[int, Chunk, memoryview], None]
"""(position, chunk, body): the body is valid only during the call, and not checked yet."""
OnFailed = Callable[[int, str], None]
"""(position, reason): nothing more comes of this question."""


class Fetches:
    """The questions under way in one generation, on one node."""

    def __init__(self, node: Node) -> None:
        self._store, self._links = node.store, node.links
        self._position, self._restore = node.position, node.membership.restore
        self._asked: dict[int, tuple[int, OnChunk, OnFailed]] = {}
        self._attempt = 0

    def ask(
        self,
        source: int,
        snapshot: SnapshotId,
        lane: int,
        rotation: int,
        first: int,
        stop: int,
        on_chunk: OnChunk,
        on_failed: OnFailed,
    ) -> int:
        """Ask for stripes ``first`` to ``stop``; the number of the question, 0 if ``source`` is not connected.

        Chunks come in order of stripe; where the unit of ``source`` has none, none comes. Who has what was asked for
        says ``forget``; ``on_failed`` is called at most once, and not from within this call.
        """
        link = self._links.get(source)
        if link is None:
            return 0
        self._attempt -= 1
        self._asked[self._attempt] = (source, on_chunk, on_failed)
        link.send(Fetch(snapshot, lane, rotation, first, stop, self._attempt, urgent=False))
        return self._attempt

    def forget(self, attempt: int) -> None:
        """What still comes of this question is of no interest."""
        self._asked.pop(attempt, None)

    def on_chunk(self, position: int, chunk: Chunk, body: memoryview) -> None:
        """An answer."""
        source, on_chunk, _ = self._asked.get(chunk.attempt, (None, None, None))
        if source == position and on_chunk is not None:
            on_chunk(position, chunk, body)

    def on_fetch_failed(self, position: int, failed: FetchFailed) -> None:
        """``position`` does not have it."""
        source, _, on_failed = self._asked.get(failed.attempt, (None, None, None))
        if source == position and on_failed is not None:
            self.forget(failed.attempt)
            on_failed(position, failed.reason)

    def on_lost(self, position: int) -> None:
        """The connection to ``position`` is gone, and with it what it was sending."""
        for attempt, (source, _, on_failed) in list(self._asked.items()):
            if source == position and self._asked.pop(attempt, None) is not None:
                on_failed(position, f"the connection to position {position} was lost")

    def answer(self, position: int, fetch: Fetch) -> None:
        """Send what is asked for. A restore goes before a protect."""
        urgent = fetch.urgent and fetch.snapshot == self._restore
        answer_fetch(self._store, self._links[position], fetch, f"position {self._position}", urgent=urgent)


def answer_fetch(store: Store, link: Connection, fetch: Fetch, name: str, *, urgent: bool) -> None:
    """Send what is asked for, up to where there is something that is not here. ``name``: of who answers."""
    for stripe in range(fetch.first, fetch.stop):
        part = store.my_part(fetch.snapshot, fetch.lane, fetch.rotation, stripe)
        if part is None:
            where = f"stripe {stripe} of lane {fetch.lane}, rotation {fetch.rotation}"
            # Not behind bulk: it would come after the word that the stripe is back, and be believed.
            link.send(FetchFailed(fetch.attempt, f"{name} lacks {where}"))
            return
        body, sum_ = part
        if not body:
            return  # the unit ends before
        chunk = Chunk(fetch.snapshot, fetch.lane, fetch.rotation, stripe, sum_, fetch.attempt)
        link.send_bulk(chunk, body, urgent=urgent)
