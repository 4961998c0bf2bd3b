"""Pure: when a job makes its first snapshot of a new size though none is due.

A node that was drained, or taken out, without another one in its place holds bytes of the state that was re-sharded:
until a snapshot of the new size is safe they may have to be read again, and the node may not be switched off. Where
snapshots are rare that is long. So all ranks stop after one step, as for a planned change (`halting.py`): whatever is
due, that step is captured. Then they go on. Where a snapshot is due soon, none of this happens.
"""

from __future__ import annotations

from ftrain_launcher.job.generation import Generation
from ftrain_launcher.job.membership import NodeState
from ftrain_launcher.job.roster import Roster

AWAITED_SECONDS = 5.0
"""Memory for the larger share is allocated after the first step: whoever stops then stands there meanwhile."""


class FirstSnapshot:
    """One job's; the roster is the coordinator's."""

    def __init__(self, roster: Roster) -> None:
        self.deadline: float | None = None
        """When it is due; None: nobody waits for it, or it is."""
        self._roster = roster
        self._generation = 0
        self._since = 0.0

    def forget(self) -> None:
        """The job does not run just now."""
        self.deadline = None

    def due(self, formed: Generation, now: float) -> bool:
        """While the job trains: whether it is time. So until the snapshot is safe, or nobody waits for it any more."""
        self.deadline = None
        left = [node for node in self._roster.cordoned.values() if node.state is NodeState.CORDONED]
        if not formed.ranks.in_training or not any(formed.reads(node.name) for node in left):
            return False
        if formed.number != self._generation:
            self._generation, self._since = formed.number, now
        if now >= self._since + AWAITED_SECONDS:
            return True
        self.deadline = self._since + AWAITED_SECONDS
        return False
