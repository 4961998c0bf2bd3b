"""The engine of a machine that runs the controller and no node: all nodes are other hosts, or other launchers here."""

from __future__ import annotations

from ftrain_launcher.engine_messages import EngineHello
from ftrain_launcher.engines.base import Engine


class NoNodes(Engine):
    """In a job of hosts nobody asks for nodes: each host offers its own."""

    def hello(self) -> EngineHello:
        """Nothing runs here."""
        return EngineHello(())

    def _failure_domain(self, node: str) -> str:
        return ""

    def _freed(self) -> None:
        """There is none that could end."""
