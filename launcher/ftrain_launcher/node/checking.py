"""A node's part in checking what is stored: on request at once, and what its daemon finds by itself, told as news."""

from __future__ import annotations

from pathlib import Path

from ftrain_launcher.from_agent import Trouble
from ftrain_launcher.questions import Verified, Verify
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import SnapshotError
from ftrain_snapshot.status import DaemonStatus

VERIFY_TIMEOUT_SECONDS = 540.0
"""For reading all of a node's memory: hundreds of GB take minutes."""


def verify(node: str, node_folder: Path, wish: Verify) -> Verified:
    """Have the node's daemon check all that it stores; blocks until it has.

    Over a connection of its own, so that the daemon's other answers do not wait for this one.
    """
    try:
        with DaemonClient(node_folder, role="agent") as client:
            lanes = client.verify(VERIFY_TIMEOUT_SECONDS).lanes
    except (SnapshotError, TimeoutError) as error:
        return Verified(node=node, request=wish.request, failure=str(error))
    return Verified(node=node, request=wish.request, lanes=lanes)


class DamageWatch:
    """Reads from a daemon's reports that chunks were damaged, and what became of them."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._seen = self._told = (0, 0, 0)

    def news(self, status: DaemonStatus) -> Trouble | None:
        """What to tell, once its repair is done or makes no progress from one report to the next."""
        before, self._seen = self._seen, (status.generation, status.damaged, status.repaired)
        if not status.damaged or self._seen == self._told:
            return None
        if status.repaired < status.damaged and self._seen != before:
            return None
        self._told = self._seen
        return Trouble(self._node, status.generation, "chunks_damaged", _counted(status))


def _counted(status: DaemonStatus) -> str:
    left = status.damaged - status.repaired
    rebuilt = f"{left} not repaired" if left > 0 else "all repaired from parity"
    return f"{status.damaged} in generation {status.generation}, {rebuilt}"
