"""The controller's side of detection: whose reports count, and what is added to a verdict before it is submitted."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from unit.coordinator_job import Job, config

from ftrain_launcher import detection
from ftrain_launcher.detect.records import (
    Collectives,
    Communicator,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)
from ftrain_launcher.detect.verdict import Kind
from ftrain_launcher.detection import Detection
from ftrain_launcher.events import Detect, Diagnosed
from ftrain_launcher.questions import Finding, Inspect, Inspected
from ftrain_launcher.requests import Requests

WORLD = Communicator("dp", (0, 1, 2))


def report(rank: int, generation: int, *, waits: bool) -> NodeReport:
    """Of a node with one rank: it waits in its tenth all-reduce, or has been stopped before."""
    operation = Operation(10, Op.ALL_REDUCE, 4096, 6, 1024, -1, 1.0, 0.01, 0.02)
    place = Collectives(0, 10, 9, (operation,), operation) if waits else Collectives(0, 9, 9)
    process = ProcessState("S" if waits else "T", 1.0, "S" if waits else "T")
    record = RankRecord(rank, 3, 1.0, (place,), (), process)
    return NodeReport(node=f"node-{rank}", generation=generation, communicators=(WORLD,), ranks=(record,))


class Agents:
    """Outboxes of agents that answer at once, or never."""

    def __init__(self, *, answer: bool) -> None:
        self.asked: list[Inspect] = []
        outboxes: dict[str, Any] = {f"node-{n}": self for n in range(3)}
        self.requests = Requests(outboxes)
        self._answer = answer

    def put(self, wish: Inspect) -> None:
        self.asked.append(wish)
        if self._answer:
            found = tuple(Finding(rank, "stopped", "train (train.py:7)") for rank in wish.ranks)
            self.requests.take(Inspected("node-1", wish.request, found))


async def watch(job: Job, agents: Agents, reports: list[NodeReport]) -> list[Diagnosed]:
    """Give these reports; what is submitted until all looks have ended."""
    submitted: list[Diagnosed] = []
    watched = Detection(job.coordinator, agents.requests, submitted.append)
    for one in reports:
        watched.take(one)
    while watched._background.tasks:
        await asyncio.gather(*watched._background.tasks)
    await watched.close()
    return submitted


def running(detect: Detect = Detect.ACT) -> Job:
    job = Job(msgspec.structs.replace(config(spares=0), detect=detect))
    for node in range(3):
        job.join(f"node-{node}")
    job.stop_all()
    return job


def reports(generation: int) -> list[NodeReport]:
    return [report(rank, generation, waits=rank != 1) for rank in range(3)]


def test_a_verdict_is_submitted_with_what_its_suspect_looks_like_from_outside() -> None:
    agents = Agents(answer=True)
    (found,) = asyncio.run(watch(running(), agents, reports(1)))
    assert (found.verdict.kind, found.verdict.ranks) == (Kind.HANG, (1,))
    assert [wish.ranks for wish in agents.asked] == [(1,)]
    assert found.verdict.details["stack of rank 1"] == "train (train.py:7)"


def test_an_agent_that_does_not_answer_holds_no_verdict_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(detection, "INSPECT_SECONDS", 0.01)
    (found,) = asyncio.run(watch(running(), Agents(answer=False), reports(1)))
    assert "did not answer" in found.verdict.details["stack of rank 1"]


def test_reports_of_another_generation_are_not_looked_at() -> None:
    assert asyncio.run(watch(running(), Agents(answer=True), [*reports(2), *reports(0)])) == []


def test_nothing_is_asked_for_where_detection_is_off() -> None:
    assert asyncio.run(watch(running(Detect.OFF), Agents(answer=True), reports(1))) == []
