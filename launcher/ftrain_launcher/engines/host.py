"""The engine of a real host: it runs the one node of this machine, and offers the machine anew when that is gone."""

from __future__ import annotations

from collections.abc import Callable

from ftrain_launcher.engine_messages import EngineHello, FromEngine, Offer
from ftrain_launcher.engines.base import Engine
from ftrain_launcher.jobs import JobFolder


class HostEngine(Engine):
    """One node at a time, whatever the controller calls it."""

    def __init__(self, folder: JobFolder, tell: Callable[[FromEngine], None], offer: Offer) -> None:
        super().__init__(folder, tell)
        self._offer = offer

    def hello(self) -> EngineHello:
        """The node that runs; if none does, there is room for one."""
        return EngineHello(self.nodes, self._offer)

    def _failure_domain(self, node: str) -> str:
        return self._domains[0] if self._domains else ""

    def _freed(self) -> None:
        """Another node may run here from now on."""
        if not self.nodes and not self._stopping:
            self._tell(self.hello())
