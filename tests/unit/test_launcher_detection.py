"""The controller's side of detection: whose reports count, and what is added to a verdict before it is submitted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from unit.coordinator_job import Job, config

from ftrain_launcher.control import detection, link_matrix
from ftrain_launcher.control.detection import Detection
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.detect.detector import Detector
from ftrain_launcher.detect.lossy import SentAgain
from ftrain_launcher.detect.pace import Pace
from ftrain_launcher.detect.patience import WentOn
from ftrain_launcher.detect.records import (
    Collectives,
    Communicator,
    NodeReport,
    Op,
    Operation,
    ProcessState,
    RankRecord,
)
from ftrain_launcher.detect.slow_links import Slowed
from ftrain_launcher.detect.verdict import Kind, Link, Verdict
from ftrain_launcher.job.events import Detect, Diagnosed, Tick
from ftrain_launcher.job.membership import Phase
from ftrain_launcher.questions import Finding, Inspect, Inspected, Probe, Probed
from ftrain_snapshot.messages import LinkFigure

WORLD = Communicator("dp", (0, 1, 2))


def report(rank: int, generation: int, *, waits: bool) -> NodeReport:
    """Of a node with one rank: it waits in its tenth all-reduce, or has been stopped before."""
    operation = Operation(10, Op.ALL_REDUCE, 4096, 6, 1024, -1, 1.0, 0.01, 0.02)
    place = Collectives(0, 10, 9, (operation,), operation) if waits else Collectives(0, 9, 9)
    process = ProcessState("S" if waits else "T", 1.0, "S" if waits else "T")
    record = RankRecord(rank, 3, 1.0, (place,), (), process)
    return NodeReport(node=f"node-{rank}", generation=generation, communicators=(WORLD,), ranks=(record,))


FINE = LinkFigure(0, 3e-4, 3e-4, 1e9, sent_segments=800)
LOSSY = LinkFigure(0, 3e-4, 3e-4, 1e9, sent_segments=800, lost_segments=40)


class Line:
    """To the agent of one node."""

    def __init__(self, agents: Agents, position: int) -> None:
        self._agents, self._position = agents, position

    def put(self, wish: Inspect | Probe) -> None:
        self._agents.take(self._position, wish)


class Agents:
    """Outboxes of agents that answer at once, or never. Their daemons find all links fine but those of ``links``."""

    def __init__(self, *, answer: bool, links: Mapping[tuple[int, int], LinkFigure] | None = None) -> None:
        self.asked: list[Inspect] = []
        self.rounds = 0
        self.before_probes: Callable[[], None] = lambda: None
        self.before_looks: Callable[[], None] = lambda: None
        self.waits: Callable[[], None] = lambda: None
        """Each that is asked for something takes its time."""
        self._links = links or {}
        outboxes: dict[str, Any] = {f"node-{n}": Line(self, n) for n in range(3)}
        self.requests = Requests(outboxes)
        self._answer = answer

    def take(self, source: int, wish: Inspect | Probe) -> None:
        self.waits()
        if isinstance(wish, Probe):
            self._probe(source, wish)
            return
        self.asked.append(wish)
        self.before_looks()
        if self._answer:
            found = tuple(Finding(rank, "stopped", "train (train.py:7)") for rank in wish.ranks)
            self.requests.take(Inspected("node-1", wish.request, found))

    def _probe(self, source: int, wish: Probe) -> None:
        self.rounds += source == 0
        self.before_probes()
        figures = [
            msgspec.structs.replace(self._links.get((source, to.position), FINE), destination=to.position)
            for to in wish.peers
        ]
        self.requests.take(Probed(node=f"node-{source}", request=wish.request, figures=tuple(figures)))


async def watch(
    job: Job, agents: Agents, reports: list[NodeReport], later: Sequence[NodeReport] = ()
) -> list[Diagnosed]:
    """Give these reports, and the later ones when links are probed; what is submitted until all looks have ended."""
    submitted: list[Diagnosed] = []
    watched = Detection(job.coordinator, agents.requests, submitted.append)
    agents.before_probes = agents.before_looks = lambda: [watched.take(one) for one in later] and None
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


def late(rank: int, seconds: float) -> NodeReport:
    """Of a node whose rank waits for rank 1, which was outside for so long; nought: it has come, and all have left."""
    operation = Operation(10, Op.ALL_REDUCE, 4096, 6, 1024, -1, seconds, 0.01, 0.02)
    waits = Collectives(0, 10, 9, (operation,), operation) if seconds else Collectives(0, 10, 10)
    place = Collectives(0, 9, 9) if rank == 1 and seconds else waits
    idle = seconds + 0.1 * (rank == 1)
    record = RankRecord(rank, 3, 5.0, (place,), (), ProcessState("S", 1.0, "S"), idle)
    return NodeReport(node=f"node-{rank}", generation=1, communicators=(WORLD,), ranks=(record,))


def test_who_went_on_while_it_was_looked_at_did_not_hang_and_how_long_it_took_is_told(monkeypatch: Any) -> None:
    monkeypatch.setattr(detection, "time", SimpleNamespace(monotonic=lambda: 100.0))  # a busy machine takes its time
    stands, goes_on = ([late(rank, seconds) for rank in (1, 0, 2)] for seconds in (1.0, 0.0))
    (hangs,) = asyncio.run(watch(running(), Agents(answer=True), stands, stands))
    assert (hangs.verdict.kind, hangs.verdict.ranks) == (Kind.HANG, (1,))
    (went_on,) = asyncio.run(watch(running(), Agents(answer=True), stands, goes_on))
    assert isinstance(went_on, WentOn)
    assert (went_on.rank, went_on.seconds) == (1, pytest.approx(1.1))


def test_how_long_it_lasted_is_told_of_the_moment_at_which_it_is_told(monkeypatch: Any) -> None:
    """A story's beginning is reckoned back from there; a look at links takes seconds."""
    clock = [100.0]
    monkeypatch.setattr(detection, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def wait() -> None:
        clock[0] += 1.0 / 3

    cut = Agents(answer=True, links={(0, 2): LinkFigure(2, failure="timeout")})
    for agents, given, rounds in ((cut, STUCK, detection.ROUNDS_OF_HANG), (Agents(answer=True), reports(1), 1 / 3)):
        agents.waits = wait
        (found,) = asyncio.run(watch(running(), agents, given))
        asked = found.verdict.seconds - rounds
        assert asked == pytest.approx(2.0 if agents is cut else 1.0, abs=0.01)


def test_an_agent_that_does_not_answer_holds_no_verdict_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(detection, "INSPECT_SECONDS", 0.01)
    (found,) = asyncio.run(watch(running(), Agents(answer=False), reports(1)))
    assert "did not answer" in found.verdict.details["stack of rank 1"]


def test_reports_of_another_generation_are_not_looked_at() -> None:
    assert asyncio.run(watch(running(), Agents(answer=True), [*reports(2), *reports(0)])) == []


def test_nothing_is_asked_for_where_detection_is_off() -> None:
    assert asyncio.run(watch(running(Detect.OFF), Agents(answer=True), reports(1))) == []


def stuck(rank: int, step: int, *, seq: int = 10, age: float = 2.0) -> NodeReport:
    """Of a node whose rank is in its tenth all-reduce, like all the others."""
    operation = Operation(seq, Op.ALL_REDUCE, 4096, 6, 1024, -1, age, 0.01, 0.02)
    place = Collectives(0, seq, seq - 1, (operation,), operation)
    record = RankRecord(rank, step, 2.0, (place,), (), ProcessState("S", 1.0))
    return NodeReport(node=f"node-{rank}", generation=1, communicators=(WORLD,), ranks=(record,))


STUCK, WENT_ON = [stuck(rank, 3) for rank in range(3)], [stuck(rank, 4) for rank in range(3)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_matrix, "APART_SECONDS", 0.0)
    monkeypatch.setattr(detection, "JUDGE_SECONDS", 0.0)
    monkeypatch.setattr(detection, "UNEXPLAINED_SECONDS", 0.0)


def test_what_hangs_over_a_bad_link_is_that_links_fault() -> None:
    agents = Agents(answer=True, links={(0, 2): LinkFigure(2, failure="timeout")})
    (found,) = asyncio.run(watch(running(), agents, STUCK))
    assert (found.verdict.kind, found.verdict.links) == (Kind.COMMUNICATION_HANG, (Link(0, 2),))
    assert agents.rounds == detection.ROUNDS_OF_HANG


def test_what_hangs_and_no_link_is_bad_is_told_without_one() -> None:
    agents = Agents(answer=True)
    (found,) = asyncio.run(watch(running(), agents, STUCK))
    assert (found.verdict.kind, found.verdict.links) == (Kind.COMMUNICATION_HANG, ())
    assert agents.rounds == 1


@pytest.mark.parametrize("what", ["it lasts", "it goes on", "the job is stopped"])
def test_what_no_link_explains_is_given_time_to_go_on(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a crowded machine a thread of the backend's waits for a processor, and nobody counts that."""
    clock = [100.0]
    monkeypatch.setattr(detection, "UNEXPLAINED_SECONDS", 10.0)
    monkeypatch.setattr(detection, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    job, agents, submitted = running(), Agents(answer=True), list[Diagnosed]()

    async def watch_it() -> None:
        watched = Detection(job.coordinator, agents.requests, submitted.append)
        for one in STUCK:
            watched.take(one)
        while watched._background.tasks:
            clock[0] += 0.5
            for one in WENT_ON if what == "it goes on" and clock[0] == 104.0 else ():
                watched.take(one)
            if what == "the job is stopped" and clock[0] == 104.0:
                job.exit(2, signal=9)
            await asyncio.sleep(0)
        await watched.close()

    asyncio.run(watch_it())
    lasted = [found.verdict.seconds for found in submitted]
    assert lasted == ([pytest.approx(10.0, abs=1.0)] if what == "it lasts" else [])


def test_members_that_leave_one_by_one_call_for_one_look_at_the_links() -> None:
    """Over a slow line each is a new finding. Probes in line would keep the first for half a minute."""
    beyond = [stuck(rank, 3, seq=11, age=0.1) for rank in range(3)]
    agents = Agents(answer=True, links={(0, 2): LOSSY})
    found = asyncio.run(watch(running(), agents, [*STUCK, beyond[0], stuck(2, 3), beyond[1], stuck(2, 3)]))
    assert [(one.verdict.kind, one.verdict.links) for one in found] == [(Kind.COMMUNICATION_HANG, (Link(0, 2),))]
    assert agents.rounds == detection.ROUNDS_OF_HANG


def test_what_went_on_while_links_were_probed_was_no_hang() -> None:
    assert asyncio.run(watch(running(), Agents(answer=True), STUCK, WENT_ON)) == []
    (found,) = asyncio.run(watch(running(), Agents(answer=True, links={(0, 2): LOSSY}), STUCK, WENT_ON))
    assert (found.verdict.kind, found.verdict.links) == (Kind.COMMUNICATION_SLOW, (Link(0, 2),))
    assert found.verdict.sentence.endswith("have not left it for 2.0 s, and then went on")


def test_nor_was_what_went_on_in_the_same_step() -> None:
    """On a crowded machine steps are longer than probes."""
    further = [stuck(rank, 3, seq=11, age=0.1) for rank in range(3)]
    assert asyncio.run(watch(running(), Agents(answer=True), STUCK, further)) == []
    (found,) = asyncio.run(watch(running(), Agents(answer=True), STUCK, further[1:]))
    assert found.verdict.kind == Kind.COMMUNICATION_HANG, "rank 0 is in it still"


def last_word(rank: int) -> NodeReport:
    """Of a node whose rank has left its tenth all-reduce; rank 1 called one of another size."""
    operation = Operation(10, Op.ALL_REDUCE, 4096, 6, 1024 if rank != 1 else 7, -1, 1.0, 0.01, 0.02)
    record = RankRecord(rank, 3, 1.0, (Collectives(0, 10, 10, (), operation),), (), ProcessState("S", 1.0), 1.0)
    return NodeReport(node=f"node-{rank}", generation=1, communicators=(WORLD,), ranks=(record,))


@pytest.mark.parametrize(("seconds", "looks"), [(0.0, 6), (1.0, 2)], ids=["few ranks", "many"])
def test_in_a_job_of_very_many_ranks_not_each_last_word_is_looked_at_on_its_own(
    seconds: float, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and, once all have spoken, all of them; each look takes as long as there are ranks."""
    monkeypatch.setattr(detection, "seconds_between_looks", lambda _: seconds)
    monkeypatch.setattr(detection, "time", SimpleNamespace(monotonic=lambda: 100.0))
    asked: list[float] = []
    explain = Detector.explain
    monkeypatch.setattr(Detector, "explain", lambda self, now: asked.append(now) or explain(self, now))  # type: ignore[func-returns-value]
    job = running()
    job.exit(2, signal=9)
    assert job.coordinator.phase is Phase.STOPPING
    words = [last_word(rank) for rank in range(3)]
    *_, found = asyncio.run(watch(job, Agents(answer=True), [*words, *words]))
    assert (found.verdict.kind, found.verdict.ranks, len(asked)) == (Kind.MISMATCH, (1,), looks)


def test_nor_is_each_report_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "seconds_between_looks", lambda _: 1.0)
    monkeypatch.setattr(detection, "time", SimpleNamespace(monotonic=lambda: 100.0))
    asked: list[float] = []
    monkeypatch.setattr(Detector, "verdicts", lambda _, now: asked.append(now) or [])  # type: ignore[func-returns-value]
    asyncio.run(watch(running(), Agents(answer=True), reports(1)))
    assert len(asked) == 1


def slow_rank(rank: int) -> Verdict:
    return Verdict(kind=Kind.SLOW, generation=1, ranks=(rank,), confidence=0.9, sentence="it is slow", step=7)


@pytest.mark.parametrize("hosts", [1, 3])
@pytest.mark.parametrize(
    "doubt", [Slowed(WORLD, 7, 0.5, 0.01), SentAgain("node-1", 7, 90, 1600)], ids=["slow", "lossy"]
)
def test_nodes_that_share_a_host_have_no_link_to_be_slow(
    hosts: int, doubt: Slowed | SentAgain, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, agents = running(), Agents(answer=True, links=dict.fromkeys([(1, 0), (1, 2)], LOSSY))
    for number, node in enumerate(job.coordinator.nodes.values()):
        node.host = f"host-{number % hosts}"
    doubts = [doubt]
    monkeypatch.setattr(Pace, "doubts", lambda *_: [doubts.pop()] if doubts else [])
    found = asyncio.run(watch(job, agents, [report(0, 1, waits=False)]))
    assert [one.verdict.kind for one in found] == ([Kind.COMMUNICATION_SLOW] if hosts > 1 else [])
    assert all(one.verdict.step == 7 and one.verdict.sentence.endswith(doubt.sentence) for one in found)
    assert (agents.rounds > 0) == (hosts > 1)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [({}, Kind.SLOW), ({(0, 2): LOSSY}, Kind.SLOW), ({(1, 2): LOSSY}, Kind.COMMUNICATION_SLOW)],
    ids=["no link is bad", "another's link", "its own node's link"],
)
def test_a_rank_that_seems_slow_behind_a_bad_link_is_not_accused(
    bad: dict[tuple[int, int], LinkFigure], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [slow_rank(1)]
    monkeypatch.setattr(Pace, "verdicts", lambda *_: [told.pop()] if told else [])
    (found,) = asyncio.run(watch(running(), Agents(answer=True, links=bad), [report(0, 1, waits=False)]))
    assert (found.verdict.kind, found.verdict.step) == (kind, 7)
    assert found.verdict.details["stack of rank 1"] == "train (train.py:7)"
    assert found.verdict.sentence.endswith("it is slow")


@pytest.mark.parametrize("unreached", [(0,), (0, 1), ()])
def test_a_node_that_is_not_heard_but_reached_is_lost_for_a_link(unreached: tuple[int, ...]) -> None:
    job = running()
    cut = LinkFigure(2, failure="no answer within 1 s")
    agents = Agents(answer=True, links={(source, 2): cut for source in unreached})
    submitted: list[Diagnosed] = []

    async def watch_it_go() -> None:
        watched = Detection(job.coordinator, agents.requests, submitted.append)
        watched.take(reports(1)[0])
        runs = asyncio.create_task(watched.run())
        job.leave("node-2")
        while not agents.rounds:
            await asyncio.sleep(0)
        job.tell(Tick(), after=job.config.agent_grace_seconds)
        while watched._background.tasks:
            await asyncio.gather(*watched._background.tasks)
        runs.cancel()
        await watched.close()

    asyncio.run(watch_it_go())
    assert [found.verdict.links for found in submitted] == ([(Link(0, 2), Link(2, 0))] if unreached == (0,) else [])
    for found in submitted:
        job.tell(found)
        incident = job.coordinator.incidents[-1]
        assert [sign.kind for sign in incident.signs] == ["node_lost", "communication_hang"]
