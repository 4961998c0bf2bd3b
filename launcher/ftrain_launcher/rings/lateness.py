"""Whether a rank is in an operation for longer than is usual, by its record."""

from __future__ import annotations

import math

from ftrain_launcher.detect.records import Operation, RankRecord, pending_operations

LATE_SECONDS_MIN = 0.2
"""No operation is late before (less than half of the shortest time that the detector allows)."""


def late_in_seconds(rank: RankRecord) -> float:
    """When one of its operations will have lasted for longer than is usual; negative: since when."""
    return min(
        (_allowed(operation) - operation.age_seconds for operation in pending_operations(rank)), default=math.inf
    )


def waits_long(rank: RankRecord) -> bool:
    """Whether an operation lasts for longer than is usual; of one without history, than one that is never late. Or it
    waits at the end of a step."""
    return rank.commit is not None or any(
        operation.age_seconds >= max(operation.usual_seconds or 0.0, LATE_SECONDS_MIN)
        for operation in pending_operations(rank)
    )


def _allowed(operation: Operation) -> float:
    usual = operation.usual_seconds
    return math.inf if usual is None else max(usual, LATE_SECONDS_MIN)
