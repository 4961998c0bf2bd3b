"""The job's last phase: everybody is asked to end; whoever has not left when the time is up is released."""

from __future__ import annotations

import signal

from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.job.orders import Orders
from ftrain_launcher.job.policy import Action
from ftrain_launcher.job.roster import Roster
from ftrain_launcher.to_agent import Shutdown


class Ending:
    """How the job ends, and until when it may take; the roster is the coordinator's."""

    def __init__(self, config: JobConfig, roster: Roster, orders: Orders) -> None:
        self.exit_code = 0
        self.message = ""
        self.signal: int = signal.SIGTERM
        """What asks the workers to end."""
        self.deadline: float | None = None
        """When the last node is to have left; None: the job goes on, or is over."""
        self._config = config
        self._roster = roster
        self._orders = orders

    def begin(self, action: Action, now: float) -> None:
        """Ask everybody to end."""
        self.exit_code, self.message = action.exit_code, action.reason
        self.extend(now)
        for node in self._roster.nodes.values():
            if node.gone:
                continue
            self._roster.wait(node, None)
            if node.connection is not None:
                self.ask(node)
            else:
                self._release(node)

    def ask(self, node: Node) -> None:
        """A node is there that should end."""
        self._orders.send(node, Shutdown(self.message, self._config.shutdown_grace_seconds, self.signal))

    def extend(self, now: float) -> None:
        """The time for it begins now."""
        self.deadline = now + self._config.shutdown_grace_seconds + self._config.stop_timeout_seconds

    def finish(self) -> None:
        """All have left, or the time is up."""
        for node in self._roster.nodes.values():
            if not node.gone:
                self._release(node)
        self.deadline = None
        self.say()

    def say(self) -> None:
        """Tell the launchers that all is over; again to those who may not have heard it."""
        self._orders.end(self.exit_code, self.message)

    def _release(self, node: Node) -> None:
        """There is nobody to ask: its engine sees to it that nothing of it goes on running."""
        self._roster.remove(node, NodeState.RELEASED)
        self._orders.reap(node)
