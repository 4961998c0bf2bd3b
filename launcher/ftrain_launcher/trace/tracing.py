"""The controller's part in ``ftrain trace``: ask each agent for its clock, a few times, and then for its part.

Rings carry the monotonic clock of their host, and so do the agents' answers: a host whose time of day is wrong, or is
being set, makes no difference.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from ftrain_launcher.control.clock_reading import CLOCK_SECONDS_MAX, MONOTONIC, offset_of
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.questions import TracePart, TraceWanted
from ftrain_launcher.trace.records import RECORDS_PER_JOB_MAX, NodeTraced

_PART_SECONDS = 10.0
TRACE_SECONDS_MAX = CLOCK_SECONDS_MAX + _PART_SECONDS


class Tracing:
    """One job's."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def run(self, nodes: Iterable[str], world_size: int, steps: int) -> tuple[NodeTraced, ...]:
        """The last steps of these nodes' ranks, in their order; within about ``TRACE_SECONDS_MAX``."""
        records_max = max(1, RECORDS_PER_JOB_MAX // max(1, world_size))
        to_unix_ns = time.time_ns() - time.monotonic_ns()  # once: all nodes are to have the same
        return tuple(await asyncio.gather(*(self._trace(node, steps, records_max, to_unix_ns) for node in nodes)))

    async def _trace(self, node: str, steps: int, records_max: int, to_unix_ns: int) -> NodeTraced:
        offset = await offset_of(self._requests, node, MONOTONIC)
        if isinstance(offset, str):
            return NodeTraced(node=node, failure=offset)
        part = await self._requests.ask(
            node, lambda number: TraceWanted(number, steps, records_max), TracePart, _PART_SECONDS
        )
        if isinstance(part, str):
            return NodeTraced(node=node, failure=part)
        return NodeTraced(
            node=node,
            trace=part.trace,
            offset_ns=round(offset.seconds * 1e9) + to_unix_ns,
            error_ns=round(offset.error_seconds * 1e9),
        )
