"""A node's part in measuring links: its daemon does it, beside everything else."""

from __future__ import annotations

from pathlib import Path

from ftrain_launcher.questions import Probe, Probed
from ftrain_snapshot.client import DaemonClient
from ftrain_snapshot.errors import SnapshotError


def probe(node: str, node_folder: Path, wish: Probe) -> Probed:
    """Have the node's daemon probe these links; blocks until it has.

    Over a connection of its own, so that the daemon's other answers do not wait for this one.
    """
    try:
        with DaemonClient(node_folder, role="agent") as client:
            figures = client.probe(
                node,
                wish.peers,
                burst_bytes=wish.burst_bytes,
                bursts=wish.bursts,
                count=wish.count,
                timeout_seconds=wish.timeout_seconds,
            )
    except (SnapshotError, TimeoutError) as error:
        return Probed(node=node, request=wish.request, failure=str(error))
    return Probed(node=node, request=wish.request, figures=figures)
