"""Pure: with ``--preflight`` no node gets a position before its health was checked against that of the others.

All that have gathered are checked together, spares included; one that comes later is checked against what is known
of those before it. Who fails is cordoned; a spare takes its place, or the job ends, with the findings in its message.
"""

from __future__ import annotations

from ftrain_launcher.events import JobConfig, NodeChecked
from ftrain_launcher.membership import Cordon, NodeState
from ftrain_launcher.orders import Orders
from ftrain_launcher.policy import EXIT_NODES, Action
from ftrain_launcher.roster import Roster


class Preflight:
    """One job's; the roster is the coordinator's."""

    def __init__(self, config: JobConfig, roster: Roster, orders: Orders) -> None:
        self._config = config
        self._roster = roster
        self._orders = orders
        self._passed: set[str] = set()
        self._asked: set[str] = set()
        """Whose check is under way."""
        self._failures: list[NodeChecked] = []

    def passed(self) -> bool:
        """Whether all that are idle may hold ranks; asks for the checks that are missing."""
        if not self._config.preflight:
            return True
        missing = [n.name for n in self._roster.in_state(NodeState.IDLE) if n.name not in self._passed]
        if missing and not self._asked:
            self._asked.update(missing)
            self._orders.announce([f"preflight: checking {', '.join(missing)}"])
            self._orders.check(missing)
        return not missing

    def forget_asked(self) -> None:
        """Nobody answers any more: a new controller has to ask again."""
        self._asked.clear()

    def take(self, event: NodeChecked, now: float) -> None:
        """A node was checked. One that failed stays, without ranks, until an operator wants it back."""
        self._asked.discard(event.node)
        node = self._roster.nodes.get(event.node)
        if node is None or node.state is not NodeState.IDLE:
            return  # It is checked again when it is back.
        if event.ok:
            self._passed.add(event.node)
            if event.reason:
                self._orders.announce([f"preflight: {event.node} is let in, but {event.reason}"])
            return
        self._failures.append(event)
        self._roster.cordon(node, Cordon(reason=f"preflight: {event.reason}", since=now))
        self._orders.announce([f"preflight: {event.node} gets no ranks: {event.reason}"])

    def verdict(self) -> Action | None:
        """How the job ends, if too few nodes are left, here or on their way."""
        if not self._failures or self._roster.idle() + self._roster.expected() >= self._config.nodes:
            return None
        found = "; ".join(f"{failure.node}: {failure.reason}" for failure in self._failures)
        return Action(False, f"too few nodes passed --preflight ({found})", EXIT_NODES)
