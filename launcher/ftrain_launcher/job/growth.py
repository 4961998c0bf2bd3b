"""Pure: when a job that has fewer nodes than it may have takes in those that have come.

That costs a moment of training and no step (`halting.py`), so it is done once for all that come together: when nobody
has come for a while, and the job has run for as long, so that one that is hardly formed is not formed again. A job that
has just been re-sharded has no snapshot of its present size yet, and memory for it is only being allocated: whoever
stops it then has all ranks stand there meanwhile, often in the middle of the steps that a loss had undone.
"""

from __future__ import annotations

from ftrain_launcher.job.causes import GROWN, Sign
from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.membership import NodeState
from ftrain_launcher.job.roster import Roster

GROW_AFTER_SECONDS = 5.0
"""Forming a generation takes about as long; nodes of one job come seconds apart."""
FIRST_SNAPSHOT_SECONDS = 30.0
"""The same while nothing of the present size is safe; longer is not waited, for snapshots may be rare."""


class Growth:
    """One job's; the roster is the coordinator's."""

    def __init__(self, roster: Roster) -> None:
        self.deadline: float | None = None
        """When those that are here are taken in; None: nobody is, or there is no room."""
        self._roster = roster
        self._newcomers: tuple[str, ...] = ()
        self._generation = 0
        self._since = 0.0

    def size(self) -> int:
        """How many nodes the next generation has if it takes in all that it can."""
        here = len(self._roster.positions)
        return max(here, self._roster.sizes.at_most(here + self._roster.ready()))

    def forget(self) -> None:
        """Nobody is to be taken in just now: who is here then is waited for anew."""
        self.deadline, self._newcomers = None, ()

    def due(self, formed: Generation, now: float) -> Sign | None:
        """While the job trains: whether it is time. Says so again until the next generation is announced."""
        room = self.size() - len(self._roster.positions)
        idle = [node for node in self._roster.in_state(NodeState.IDLE) if not node.unchecked][:room]
        if not idle or not formed.ranks.in_training:
            self.forget()
            return None
        names = tuple(node.name for node in idle)
        if (names, formed.number) != (self._newcomers, self._generation):
            self._newcomers, self._generation, self._since = names, formed.number, now
        self.deadline = self._since + (GROW_AFTER_SECONDS if formed.is_captured else FIRST_SNAPSHOT_SECONDS)
        if now < self.deadline:
            return None
        self.deadline = None
        return Sign(kind=GROWN, node=names[0], time=now, reason=f"with {len(names) - 1} more" if names[1:] else "")
