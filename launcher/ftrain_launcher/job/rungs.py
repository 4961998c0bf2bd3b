"""Pure: which rung of the ladder of recovery a generation stands on (docs/recovery.md)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum


class Rung(StrEnum):
    """From the cheapest to the last resort."""

    SAME_PROCESSES = "same processes"
    """Those that survived go on; what was lost is replaced on the same nodes."""
    NEW_PROCESSES = "new processes"
    """On the same nodes."""
    OTHER_NODE = "another node"
    """A spare has taken over."""
    OTHER_WORLD = "another number of nodes"
    STORAGE = "storage"


def rung_of(before: Sequence[str], now: Sequence[str], *, staying: int, durable: bool) -> Rung:
    """The rung of a generation.

    Args:
        before: the nodes of the generation that a fault ended, by position; ``now``: those of the next.
        staying: workers that go on in the same processes.
        durable: the state comes from storage.
    """
    if durable:
        return Rung.STORAGE
    if len(before) != len(now):
        return Rung.OTHER_WORLD
    if set(now) - set(before):
        return Rung.OTHER_NODE
    return Rung.SAME_PROCESSES if staying else Rung.NEW_PROCESSES
