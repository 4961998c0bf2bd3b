"""Pure: with ``--preflight`` no node gets a position before its health was checked against that of the others.

All that have gathered are checked together, spares included. One that comes later, or was away, is checked when it
is there, and not only when it is wanted: beside training, since a recovery is neither disturbed nor waits; where it
lacks a node, it rather takes one that nobody has looked at yet. Who fails is cordoned; another one takes its place.
"""

from __future__ import annotations

from ftrain_launcher.job.events import CordonNode, JobConfig, Leave, NodeChecked
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_NODES, Action
from ftrain_launcher.job.recruiting import Recruiting
from ftrain_launcher.job.roster import Roster


class Preflight:
    """One job's; all that it uses is the coordinator's."""

    def __init__(self, config: JobConfig, roster: Roster, recruiting: Recruiting, orders: Orders) -> None:
        self._config = config
        self._roster = roster
        self._recruiting = recruiting
        self._orders = orders
        self._under_way: dict[str, int | None] = {}
        """Who is being checked, and over which connection."""
        self._failures: dict[str, str] = {}
        """What was found of nodes that failed."""

    def expect(self, node: Node) -> None:
        """It is here for the first time, or will be again: nothing is known of its health."""
        node.unchecked = self._config.preflight

    def passed(self) -> bool:
        """Whether all that are idle were checked; asks for the checks that are missing, one round at a time."""
        if not self._config.preflight:
            return True
        missing = [node for node in self._roster.in_state(NodeState.IDLE) if node.unchecked]
        if missing and not self._under_way:
            self._under_way = {node.name: node.connection for node in missing}
            self._orders.announce([f"preflight: checking {', '.join(self._under_way)}"])
            self._orders.check(list(self._under_way))
        return not missing

    def forget_asked(self) -> None:
        """Nobody answers any more: a new controller has to ask again."""
        self._under_way.clear()

    def take(self, event: NodeChecked) -> CordonNode | None:
        """A check has ended; a node that failed is to be given no ranks until an operator wants it back."""
        if event.node not in self._under_way:
            return None
        connection = self._under_way.pop(event.node)
        node = self._roster.nodes[event.node]
        if node.gone or not node.unchecked or node.connection != connection:
            return None  # It was let in without it, or has been away: then it is checked again.
        if event.ok:
            node.unchecked = False
            if event.reason:
                self._orders.announce([f"preflight: {event.node} is let in, but {event.reason}"])
            return None
        self._failures[event.node] = event.reason
        return CordonNode(event.node, f"preflight: {event.reason}", Leave.SOON)

    def verdict(self) -> Action | None:
        """How the job ends, if too few nodes are left, here or to come."""
        if not self.failures or self._roster.idle() + self._recruiting.to_come() >= self._config.least:
            return None
        return Action(False, f"too few nodes passed --preflight ({self.failures})", EXIT_NODES)

    @property
    def failures(self) -> str:
        """Who failed, and why, of those that are not wanted because of it."""
        nodes = self._roster.nodes
        return "; ".join(f"{name}: {why}" for name, why in self._failures.items() if nodes[name].cordon is not None)
