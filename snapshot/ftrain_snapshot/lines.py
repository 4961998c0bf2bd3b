"""What all connections of one daemon have in common: the job's secret, TLS, whose turn it is, and what was sent.

Three classes of traffic go out. Small messages overtake everything. Urgent bulk (answers to who restores) overtakes
ordinary bulk (protecting), chunk by chunk; and while any connection has urgent bulk queued, the ordinary bulk of all
of them waits: a restore holds up the whole job, protecting only the next snapshot. (A peer that does not read its
answers holds that up until it counts as lost, ``transport.SILENCE_TIMEOUT_SECONDS``.) Ordinary bulk is also held to
``--protect-bandwidth``, over all connections together. Whoever must wait is called again, in order, by a timer:
nobody looks again and again.
"""

from __future__ import annotations

from collections.abc import Callable

from ftrain_snapshot.loop import Loop, Timer
from ftrain_snapshot.manifest import CHUNK_BYTES
from ftrain_snapshot.pace import Pace
from ftrain_snapshot.tls import Tls
from ftrain_snapshot.usage import Usage

Wake = Callable[[], None]


class Lines:
    """One per daemon; it outlives generations."""

    def __init__(self, loop: Loop, secret: bytes, tls: Tls | None = None) -> None:
        self.secret = secret
        self.tls = tls
        """None: plain TCP."""
        self.usage = Usage()
        self.hurry: Callable[[], None] = lambda: None
        """Said whenever something is done that the job waits for (priority.py)."""
        self.begin_snapshot: Callable[[int], None] = lambda _version: None
        """Said when one is being captured on this node."""
        self._loop = loop
        self._pace = Pace(CHUNK_BYTES)
        self._urgent: set[Wake] = set()
        self._waiting: dict[Wake, None] = {}  # in order
        self._timer: Timer | None = None

    def limit(self, bytes_per_second: int) -> None:
        """Cap the ordinary bulk of all connections together; 0: no cap."""
        self._pace.limit(bytes_per_second)
        self._arrange()

    @property
    def urgent(self) -> bool:
        """Whether any connection has urgent bulk queued."""
        return bool(self._urgent)

    def set_urgent(self, connection: Wake, urgent: bool) -> None:
        """Whether this connection (known by what wakes it) has urgent bulk queued."""
        if urgent:
            self.hurry()
            self._urgent.add(connection)
        else:
            self._urgent.discard(connection)
            if not self._urgent:
                self._arrange()

    def may_send(self, connection: Wake, body_bytes: int) -> bool:
        """Whether this chunk of ordinary bulk may go now; if not, the connection is woken when its turn has come."""
        now = self._loop.now()
        if not self._urgent and connection not in self._waiting and not self._pace.delay_seconds(now):
            self._pace.spend(body_bytes, now)
            return True
        self._waiting.setdefault(connection)
        self._arrange()
        return False

    def forget(self, connection: Wake) -> None:
        """It is closed."""
        self._waiting.pop(connection, None)
        self.set_urgent(connection, False)

    def _arrange(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and not self._urgent:
            self._timer = self._loop.later(self._pace.delay_seconds(self._loop.now()), self._next_turns)

    def _next_turns(self) -> None:
        """Wake those who wait, each once at most; who wants more queues behind the others."""
        for _ in range(len(self._waiting)):
            if self._urgent or not self._waiting or self._pace.delay_seconds(self._loop.now()):
                break
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            connection()
        self._arrange()
