"""Pure: a planned stop. All ranks end after one and the same step, which is in a snapshot that is sealed and protected.

    Hold to all members -> Held: how far their ranks were when they began to wait -> HaltAfter(the farthest + 1)
    -> RankHalted of every rank -> the gate has that step protected -> the next generation may be formed

So a change that is only planned loses no step, and does none twice, whatever the snapshots' interval. Nobody waits for
ever: what does not come about in time is given up, training goes on, and after a while it is tried again. Each attempt
costs all ranks a pause and a snapshot: what nobody is in a hurry for is tried less and less often. What a rank and a
node do is in `ftrain.halt` and `node_halt`.
"""

from __future__ import annotations

from ftrain_launcher.from_agent import Held, RankHalted
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.membership import Node
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.to_agent import GoOn, HaltAfter, Hold
from ftrain_snapshot.status import Levels

HOLD_SECONDS = 3.0
"""How long all nodes may take to answer `Hold`; their ranks wait meanwhile."""
HALT_SECONDS = 60.0
"""How long the ranks may take to come to the step, as some evaluate now and then: the others would wait anyway."""
PROTECT_SECONDS = 10.0
"""How long they then wait for their snapshot to be protected."""
RETRY_SECONDS = 10.0
"""After one was given up."""
DOUBLINGS_MAX = 7
"""Where there is no hurry, each time after twice as long: up to 21 minutes."""
NAMED_MAX = 8
"""So many ranks are named."""


class Halting:
    """One job's; the roster and the orders are the coordinator's."""

    def __init__(self, roster: Roster, orders: Orders) -> None:
        self._roster, self._orders = roster, orders
        self.deadline: float | None = None
        """When what is waited for is given up, or tried again."""
        self.step: int | None = None
        """The step after which all ranks stop; None: none is agreed on."""
        self.stopped_at: float | None = None
        """When the last rank so far had stopped there, in Unix seconds."""
        self.under_way = False
        """Ranks are held, or on their way to the step, or stand there."""
        self.why = ""
        """Why the last one was given up, if it is to be tried again."""
        self._generation = self._attempt = self._ranks = 0
        self._given_up_at = 0.0
        self._failures = 0
        """How many were given up in a row."""
        self._patient = False
        self._levels = Levels()
        self._uncaptured: Levels | None = None
        """The levels when a rank could not capture the step, if that was why the last one was given up."""
        self._held: dict[str, int] = {}
        self._halted: set[int] = set()

    # ---- for who plans a change

    def ready(self, formed: Generation, now: float, *, patient: bool = False) -> bool:
        """A change is wanted: True once all ranks stand after `step`, and that is protected.

        To be asked after every event for as long as the change is wanted; the first time begins the halt. ``patient``:
        it may wait for long, and people are told once that it does.
        """
        self._patient, self._levels = patient, formed.levels
        if not formed.ranks.in_training:
            self.release()
        elif not self.under_way:
            self._begin(formed, now)
        elif len(self._halted) == len(formed.ranks.by_number) and self._is_safe(formed):
            self.deadline = None
            return True
        elif self.deadline is not None and now >= self.deadline:
            self._give_up(self._late(formed), now)
        return False

    def release(self) -> None:
        """Nobody wants a change any more: training goes on."""
        self._let_go()
        self._failures, self.why = 0, ""

    def forget(self) -> None:
        """Whatever was under way is void: the workers are ended."""
        self._clear()
        self._failures, self.why = 0, ""

    def _let_go(self) -> None:
        if self.under_way:
            self._send_all(GoOn(self._generation))
        self._clear()

    def _clear(self) -> None:
        self.deadline = self.step = self.stopped_at = None
        self.under_way = False
        self._held, self._halted = {}, set()

    # ---- what is heard

    def take(self, event: Held | RankHalted, now: float) -> None:
        """A node's ranks wait, or a rank has come to the step."""
        if not self.under_way or event.generation != self._generation:
            return
        if isinstance(event, RankHalted):
            self._take_rank(event, now)
        elif event.attempt == self._attempt and self.step is None:
            self._held[event.node] = event.step
            if self._held.keys() >= {node.name for node in self._roster.members()}:
                self.step = max(self._held.values()) + 1
                self.deadline = now + HALT_SECONDS
                self._send_all(HaltAfter(self._generation, self.step))

    def rejoined(self, node: Node) -> None:
        """Its agent may not have heard the last word."""
        if self.under_way and node.position is not None:
            self._orders.send(node, self._word())

    def _take_rank(self, event: RankHalted, now: float) -> None:
        if not event.sealed and (self.step is None or event.step >= self.step):
            self._give_up(f"rank {event.rank} could not capture step {event.step}", now)
            self._uncaptured = self._levels
        elif event.sealed and event.step == self.step and event.rank not in self._halted:
            self._halted.add(event.rank)
            self.stopped_at = max(self.stopped_at or event.time, event.time)
            if len(self._halted) == self._ranks:
                self.deadline = now + PROTECT_SECONDS

    # ---- what follows

    def _begin(self, formed: Generation, now: float) -> None:
        if self._uncaptured is not None and self._uncaptured.sealed != self._levels.sealed:
            self._failures = min(self._failures, 1)  # There is room again: a newer snapshot was sealed.
        if self._failures and now < self._given_up_at + self._retry_seconds:
            self.deadline = self._given_up_at + self._retry_seconds
            return
        self._attempt += 1
        self.under_way, self._generation = True, formed.number
        self._ranks = len(formed.ranks.by_number)
        self.deadline = now + HOLD_SECONDS
        self._send_all(self._word())

    @property
    def _retry_seconds(self) -> float:
        doublings = min(self._failures - 1, DOUBLINGS_MAX) if self._patient else 0
        return RETRY_SECONDS * 2.0**doublings

    def _word(self) -> Hold | HaltAfter:
        if self.step is None:
            return Hold(self._generation, self._attempt)
        return HaltAfter(self._generation, self.step)

    def _is_safe(self, formed: Generation) -> bool:
        protected = formed.levels.protected
        return not formed.parity or (protected is not None and self.step is not None and protected >= self.step)

    def _late(self, formed: Generation) -> str:
        if self.step is None:
            late = sorted({node.name for node in self._roster.members()} - self._held.keys())
            return f"no answer from {', '.join(late)} within {HOLD_SECONDS:g} s"
        ranks = sorted(formed.ranks.by_number.keys() - self._halted)
        if not ranks:
            return f"step {self.step} was not protected within {PROTECT_SECONDS:g} s"
        return f"rank {', '.join(map(str, ranks[:NAMED_MAX]))} did not come to the end of step {self.step} in time"

    def _give_up(self, why: str, now: float) -> None:
        self._let_go()
        self._failures += 1
        self._uncaptured, self.why = None, why
        self._given_up_at, self.deadline = now, now + self._retry_seconds
        if not self._patient or self._failures == 1:
            how = "now and then" if self._patient else "again"
            self._orders.announce([f"the ranks go on without the planned change ({why}); it is tried {how}"])

    def _send_all(self, message: Hold | HaltAfter | GoOn) -> None:
        for node in self._roster.members():
            self._orders.send(node, message)
