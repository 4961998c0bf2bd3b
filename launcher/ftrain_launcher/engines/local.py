"""The engine that emulates nodes on this machine, as many as the controller asks for."""

from __future__ import annotations

from ftrain_launcher.engine_messages import EngineHello
from ftrain_launcher.engines.base import Engine


class LocalEngine(Engine):
    """Any number of nodes, called node-0, node-1, ..."""

    def hello(self) -> EngineHello:
        """The nodes that run; more can be started."""
        return EngineHello(self.nodes)

    def _failure_domain(self, node: str) -> str:
        """Labels were given for the first nodes and spares; a node that replaces one of them has none."""
        number = int(node.rpartition("-")[2])
        return self._domains[number] if number < len(self._domains) else ""

    def _freed(self) -> None:
        """The controller asks for another if it wants one."""
