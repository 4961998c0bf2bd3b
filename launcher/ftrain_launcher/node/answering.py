"""An agent's answers to questions: each is worked out beside everything else, and told when it is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from ftrain.health.words import CheckNode
from ftrain_launcher.background import Background
from ftrain_launcher.health.probing import probe
from ftrain_launcher.health.process import HealthProcess
from ftrain_launcher.jobs import JobRecord
from ftrain_launcher.node.checking import verify
from ftrain_launcher.node.inspection import inspect
from ftrain_launcher.node.node_workers import NodeWorkers
from ftrain_launcher.processes.environment import interface_of
from ftrain_launcher.questions import (
    CheckHealth,
    ClockRead,
    ClockWanted,
    Health,
    Inspect,
    Inspected,
    Probe,
    Question,
    Reply,
    TracePart,
    TraceWanted,
    Verify,
)
from ftrain_launcher.trace.rings import read_rings


class Answering:
    """One node's. It changes nothing: what workers and daemon do goes on."""

    def __init__(
        self, job: JobRecord, node: str, folder: Path, workers: NodeWorkers, tell: Callable[[Reply], None]
    ) -> None:
        self._job, self._node, self._folder = job, node, folder
        self._workers, self._tell = workers, tell
        self._health = HealthProcess(interface_of(job.host))
        self._background = Background()

    def take(self, question: Question) -> None:
        """Begin to answer; a clock is read at once."""
        if isinstance(question, ClockWanted):
            self._tell(ClockRead(self._node, question.request, time.monotonic(), time.time()))
            return
        self._background.begin(self._answer(question))

    async def close(self) -> None:
        """Give up what is under way."""
        await self._background.close()
        await self._health.close()

    async def _answer(self, question: Verify | Inspect | Probe | CheckHealth | TraceWanted) -> None:
        match question:
            case Verify():
                reply: Reply = await asyncio.to_thread(verify, self._node, self._folder, question)
            case Inspect():
                reply = await self._inspect(question)
            case Probe():
                reply = await asyncio.to_thread(probe, self._node, self._folder, question)
            case CheckHealth():
                reply = await self._check_health(question)
            case TraceWanted():
                generation, states = self._workers.generation, self._workers.states()
                trace = await asyncio.to_thread(read_rings, self._folder, generation, states, question)
                reply = TracePart(self._node, question.request, trace)
            case _:
                assert_never(question)
        self._tell(reply)

    async def _inspect(self, question: Inspect) -> Inspected:
        pids = {rank: pid for rank, _, pid in self._workers.running()}
        found = await asyncio.gather(*(inspect(rank, pids.get(rank)) for rank in question.ranks))
        return Inspected(self._node, question.request, tuple(found))

    async def _check_health(self, question: CheckHealth) -> Health:
        task = question.task
        if isinstance(task, CheckNode):
            task = CheckNode(self._job.config.work.log_folder, self._job.arena_folder)
        return Health(node=self._node, request=question.request, answer=await self._health.do(task))
