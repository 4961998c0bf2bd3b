"""Pure: a job whose controller may run on several hosts: one that takes over, and one that most nodes have left.

Who may decide is in `fencing.py`, and what all of it survives in docs/controller.md. Without
``--controller-candidates`` nothing here ever happens.
"""

from __future__ import annotations

from ftrain_launcher.job.causes import Sign
from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.job.fencing import FIRST_TERM, Fence
from ftrain_launcher.job.forming import Forming
from ftrain_launcher.job.generation import Generation, recalled
from ftrain_launcher.job.history import History
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_NODES, Action
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.job.rungs import rung_of
from ftrain_launcher.to_agent import Form

LOOK_SECONDS = 4.5
"""How long an agent that is well may take to find who has taken over: it tries one candidate after the other, waits 2 s
for one that is gone (`line.py`), and does so once more if the next one was just about to lead."""


class Candidates:
    """One job's; all that it uses is the coordinator's."""

    def __init__(
        self, config: JobConfig, roster: Roster, orders: Orders, history: History, forming: Forming, fence: Fence
    ) -> None:
        self.term = FIRST_TERM
        """Which controller of the job this is."""
        self._cut_off_since: float | None = None
        """While too few nodes are here to decide anything."""
        self._config = config
        self._roster = roster
        self._orders = orders
        self._history = history
        self._forming = forming
        self._fence = fence

    # ---- one that takes over

    def take_over(self, term: int, stopped: int) -> None:
        """This is another controller: no two of them may give nodes the same names, or generations the same numbers."""
        self.term, self._roster.mark = term, f"-{term}"
        self._forming.number = max(self._forming.number, stopped)

    def grace_seconds(self, *, taken_over: bool) -> float:
        """How long nodes may take to come to a controller that has just begun."""
        grace_seconds = self._config.agent_grace_seconds
        return max(grace_seconds, LOOK_SECONDS) if taken_over else grace_seconds

    def adopt(self, form: Form, now: float) -> Generation:
        """The newest generation is not in this journal: its nodes have told of it. It may well train."""
        generation = recalled(form)
        nodes = generation.ranks.nodes
        rung = rung_of(generation.before, nodes, staying=0, durable=form.durable_start is not None)
        self._history.resumed(generation.start, now, "another controller formed the next generation", rung)
        self._roster.adopt(nodes)
        self._roster.adopt_cordons(form.cordoned)
        self._history.count(form.incidents)
        self._forming.adopt(form)
        self._orders.announce(
            [f"generation {form.generation} is known from its nodes alone: what was told before it may be forgotten"]
        )
        return generation

    # ---- one that most nodes have left

    def are_too_few(self, formed: Generation) -> bool:
        """Too few nodes are connected to decide anything: the others may have another controller."""
        if not (self._fence.active and formed.number):
            return False
        heard = (*self._roster.members(), *self._roster.left_over())
        here = {node.name for node in heard if node.connection is not None}
        return not self._fence.allows(here, formed)

    def gives_up(self, node: Node, formed: Generation) -> bool:
        """Whether a node whose time is over is lost. If too few are here, it cannot be told what becomes of it."""
        return node.state is not NodeState.AWAY or not self.are_too_few(formed)

    def wait_for(self, node: Node, now: float) -> Sign:
        """Nobody is given up. Who is here stops and waits."""
        self._roster.wait(node, now + self._config.agent_grace_seconds)
        if self._cut_off_since is None:
            self._cut_off_since = now
            self._orders.announce(["most of the nodes are away: those that are here stop their workers and wait"])
        return Sign(kind="node_lost", node=node.name, time=node.away_since or now, reason=node.overdue)

    def arrived(self, formed: Generation) -> None:
        """A node is here again: there may be enough by now."""
        if self._cut_off_since is not None and not self.are_too_few(formed):
            self._cut_off_since = None

    def tick(self, formed: Generation, now: float) -> Action | None:
        """The others may have stayed away for too long: how the job ends."""
        if self._cut_off_since is None or now < self._cut_off_since + self._config.host_wait_seconds:
            return None
        within = f"within {self._config.host_wait_seconds:g} s (--join-timeout-seconds)"
        reason = f"most nodes of generation {formed.number} did not come back {within}"
        return Action(False, reason, EXIT_NODES)
