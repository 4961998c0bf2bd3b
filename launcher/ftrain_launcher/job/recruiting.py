"""How a job comes by its nodes: emulated ones are asked for, real hosts come by themselves and are waited for.

Nodes that are lost again and again before they ran anything say that no more should be asked for.
"""

from __future__ import annotations

from ftrain_launcher.job.events import HostCame, JobConfig
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import EXIT_NODES, Action
from ftrain_launcher.job.roster import Roster

_FAILURES_MIN = 3
"""So many nodes may be lost in a row before they ran, or half as many as the job has."""


class Recruiting:
    """One job's; the roster is the coordinator's."""

    def __init__(self, config: JobConfig, roster: Roster, orders: Orders) -> None:
        self.deadline: float | None = None
        """Until when to wait for hosts; None: enough are there, or on their way."""
        self.last_call: float | None = None
        """When the job begins with fewer nodes than it may have; None: too few are here, or it has begun."""
        self._called = False
        """That time is over."""
        self._failures = 0
        """Nodes lost in a row before they ran."""
        self._config = config
        self._roster = roster
        self._orders = orders

    # ---- nodes that are asked for

    def ask_for(self, wanted: int, now: float) -> None:
        """See to it that so many nodes without a position are on their way. Real hosts come by themselves."""
        if not self._config.hosts:
            for _ in range(wanted - self._roster.expected()):
                self._start(self._roster.add(self._roster.new_name()), now)

    def replace_spares(self, now: float, wanted: int = 0) -> None:
        """Ask for new spares in place of those that were used or lost; ``wanted``: so many are needed at least."""
        if not self._hopeless():
            room = self._config.nodes - len(self._roster.positions)
            self.ask_for(max(self._config.spares, wanted) + room - self._roster.idle(), now)

    def gathered(self) -> bool:
        """Whether the first nodes are here: they are meant for the ranks; spares fill in for those that do not come."""
        idle = self._roster.idle()
        if self._called and idle >= self._config.least:
            return True
        may_come = any(n.number < self._config.nodes for n in self._roster.in_state(NodeState.STARTING))
        return idle >= self._config.nodes and not may_come

    def call(self, now: float, *, gathering: bool) -> None:
        """While the job gathers: once it could begin, the others have a while to come."""
        if not gathering or self._called or not self._config.elastic or self._roster.idle() < self._config.least:
            self.last_call = None
        elif self.last_call is None:
            self.last_call = now + min(self._config.last_call_seconds, self._config.host_wait_seconds)

    def is_called(self, now: float) -> bool:
        """Whether the others have had their while, just now."""
        if self.last_call is None or now < self.last_call:
            return False
        self._called, self.last_call = True, None
        return True

    def to_come(self) -> int:
        """How many more may take a position: they are on their way, or hosts of which too few have come yet."""
        asked_for = self._config.nodes + self._config.spares if self._config.hosts else 0
        return self._roster.expected() + max(0, asked_for - self._roster.present())

    def take_failure(self, node: Node, reason: str) -> Action | None:
        """A node was lost before it ran; how the job ends, if it is in vain to ask for more."""
        self._failures += 1
        if not self._hopeless():
            return None
        count = f"{self._failures} nodes in a row were lost before they could run"
        return Action(False, f"{count}; the last: {node.name} ({reason})", EXIT_NODES)

    def succeeded(self) -> None:
        """The nodes that were lost so far count no more: the job ran."""
        self._failures = 0

    def _hopeless(self) -> bool:
        return self._failures >= max(_FAILURES_MIN, self._config.nodes // 2)

    # ---- hosts that come by themselves

    def take_host(self, event: HostCame, now: float) -> None:
        """A host has room for a node: a new one, unless it did not hear the last answer."""
        node = self._roster.of_launcher(event.launcher)
        if node is None:
            cordon = self._roster.cordon_of_host(event.hostname)
            node = self._roster.add(self._roster.new_name())
            node.launcher, node.hostname, node.meant_for = event.launcher, event.hostname, event.position
            if cordon is not None:
                self._roster.cordon(node, cordon)
            self._start(node, now)
        else:
            self._orders.start(node)

    def announce_host(self, node: Node) -> None:
        """The agent of a host is there for the first time."""
        if self._config.hosts and self._config.elastic:
            here = f"{self._roster.held() + self._roster.idle()} of {self._config.size}"
            self._orders.announce([f"{node.name} is {node.hostname} ({node.host}); {here} are here"])
        elif self._config.hosts:
            missing = self._roster.missing() + self._roster.expected()
            more = f"{missing} to come" if missing else "all are here"
            self._orders.announce([f"{node.name} is {node.hostname} ({node.host}); {more}"])

    def wait_for_hosts(self, now: float, *, wanted: bool, announce: bool) -> None:
        """Where a position is vacant and no host is on its way to it, the job waits, but not for ever.

        ``wanted``: vacant positions are to be filled now; ``announce``: people did not just start the job.
        """
        if not self._config.hosts or not wanted or not self._roster.missing():
            self.deadline = None
        elif self.deadline is None:
            self.deadline = now + self._config.host_wait_seconds
            if announce:
                self._orders.announce([f"waiting for a host: {self._missing()} are missing{self._why()}"])

    def tick(self, now: float, failures: str) -> Action | None:
        """The deadline may have come; how the job ends. ``failures``: who is here and not wanted."""
        if self.deadline is None or now < self.deadline:
            return None
        within = f"within {self._config.host_wait_seconds:g} s (--join-timeout-seconds)"
        besides = f"; --preflight turned down {failures}" if failures else ""
        return Action(False, f"{self._missing()} hosts did not come {within}{besides}{self._why()}", EXIT_NODES)

    def _missing(self) -> str:
        return f"{self._roster.missing()} of {self._roster.sizes.least}"

    def _why(self) -> str:
        return f" ({self._roster.sizes.reason})" if self._roster.sizes.reason else ""

    def _start(self, node: Node, now: float) -> None:
        self._roster.wait(node, now + self._config.start_timeout_seconds)
        self._orders.start(node)
