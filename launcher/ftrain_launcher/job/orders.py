"""The commands that follow from one event, in the order in which they are to be carried out."""

from __future__ import annotations

from collections.abc import Iterable

from ftrain_launcher.engine_messages import ReapNode, StartNode
from ftrain_launcher.job.events import Announce, CheckNodes, Command, EndJob, Send
from ftrain_launcher.job.membership import Node
from ftrain_launcher.to_agent import ToAgent


class Orders:
    """Filled by the coordinator and its parts; emptied once for each event."""

    def __init__(self) -> None:
        self._commands: list[Command] = []

    def send(self, node: Node, message: ToAgent) -> None:
        """Tell a node's agent."""
        self._commands.append(Send(node.name, message))

    def announce(self, texts: Iterable[str]) -> None:
        """Tell the people who watch the job."""
        self._commands += [Announce(text) for text in texts]

    def start(self, node: Node) -> None:
        """Have a node started."""
        self._commands.append(StartNode(node.name))

    def reap(self, node: Node) -> None:
        """See to it that nothing of a node goes on running."""
        self._commands.append(ReapNode(node.name))

    def check(self, names: Iterable[str]) -> None:
        """Have the health of these nodes checked."""
        self._commands.append(CheckNodes(tuple(names)))

    def end(self, exit_code: int, message: str) -> None:
        """All is over."""
        self._commands.append(EndJob(exit_code, message))

    def take(self) -> list[Command]:
        """All of them; none are left."""
        commands, self._commands = self._commands, []
        return commands
