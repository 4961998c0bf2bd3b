"""Pure: the job is to end soon, and to lose nothing: a pre-emption, a window that ends, an operator's ``ftrain flush``.

    FlushJob -> all ranks stop after one step, which is sealed and protected (halting.py)
    -> PinDurable, WriteDurable, DurableEnded, if there is storage -> the job ends, exit code 0

A fault on the way is a fault like any other: once the job runs again, all is begun anew. When the time is nearly over
the job ends with what was reached, which is said: the workers, too, need a while to end.
"""

from __future__ import annotations

from ftrain_launcher.engine_messages import FlushJob
from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.halting import Halting
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_NOT_FLUSHED, Action
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.to_agent import PinDurable

ENDING_SECONDS = 1.0
"""What agents and daemons need to end, once the workers have."""
RESERVE_SHARE = 0.5
"""Of a short time no more than this is kept for the end."""
WRITES_MAX = 3
"""So often storage may refuse."""
ASK_SECONDS = 2.0
"""A daemon that was just restarted may not have heard what is to be pinned."""


class Flushing:
    """One job's; all that it uses is the coordinator's."""

    def __init__(
        self, config: JobConfig, roster: Roster, orders: Orders, durable: DurableTier, halting: Halting
    ) -> None:
        self.step: int | None = None
        """The step after which all ranks stopped; None: they have not."""
        self._deadline: float | None = None
        self._ask_at: float | None = None
        """When the gate is told again what to pin."""
        self._stopped = False
        """The ranks have, after that step."""
        self._failures = 0
        """How often storage refused."""
        self._config = config
        self._roster = roster
        self._orders = orders
        self._durable = durable
        self._halting = halting

    @property
    def wanted(self) -> bool:
        """The job is to end."""
        return self._deadline is not None

    def take(self, event: FlushJob, now: float) -> None:
        """It is to end; of two such wishes the more urgent one counts."""
        reserve = min(self._config.shutdown_grace_seconds + ENDING_SECONDS, RESERVE_SHARE * event.seconds)
        deadline = now + event.seconds - reserve
        if self._deadline is None:
            self._orders.announce([f"{event.reason}: the job ends within {event.seconds:g} s, after a whole step"])
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def decide(self, formed: Generation, now: float) -> Action | None:
        """How the job ends, once it is flushed. To be asked after every event while the job runs."""
        if not self._stopped:
            if not self._halting.ready(formed, now):
                return None
            self._stopped, self.step = True, self._halting.step
        return self._settle(formed, self.step, now) if self.step is not None else None

    def begin_again(self) -> None:
        """The workers are ended, or go on: what they stopped for has come to nothing."""
        self._stopped, self._ask_at = False, None

    def tick(self, formed: Generation, now: float) -> Action | None:
        """The time may be over: how the job ends."""
        if self._deadline is None or now < self._deadline:
            return None
        stopped = f"stopped after {self.step}" if self._stopped else "the ranks did not come to the end of a step"
        return self._short(formed, f"the time was over; {stopped}")

    def next_deadline(self) -> float | None:
        """When `tick` and `decide` are to be asked again."""
        if self._deadline is None or self._ask_at is None:
            return self._deadline
        return min(self._deadline, self._ask_at)

    def _settle(self, formed: Generation, step: int, now: float) -> Action | None:
        tier = self._durable
        if tier.config is None:
            kept = "protected" if formed.parity else "sealed"
            return Action(False, f"flushed at step {step}: {kept}, in memory that ends with the job (no --durable)")
        if tier.newest is not None and tier.newest >= step:
            return Action(False, f"flushed at step {step}: on storage in {tier.config.url}")
        if tier.was_tried(step):
            return self._try_another_step(formed, step, now)
        if tier.writing is not None:
            self._ask_at = None
        elif self._ask_at is None or now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            self._orders.send(self._roster.members()[0], PinDurable(formed.number, step))
        return None

    def _try_another_step(self, formed: Generation, step: int, now: float) -> Action | None:
        """This one could not be written; what refused it may take the next one."""
        self._failures += 1
        if self._failures == WRITES_MAX:
            return self._short(formed, f"stopped after {step}, which was not written: {self._durable.failure}")
        self.begin_again()
        self._halting.release()
        self._halting.ready(formed, now)
        return None

    def _short(self, formed: Generation, why: str) -> Action:
        reached = (
            ("sealed", formed.levels.sealed),
            ("protected", formed.levels.protected),
            ("durable", self._durable.newest),
        )
        levels = ", ".join(f"{name} {'none' if step is None else step}" for name, step in reached)
        return Action(False, f"not flushed: {why} (newest step: {levels})", EXIT_NOT_FLUSHED)
