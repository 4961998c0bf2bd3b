"""A round of checks: who is asked for what, when, and what becomes of those that do not answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from unit.test_health_judge import FAST, SLOW, SOUND

from ftrain.health.words import CheckNode, Failed, Hosting, HostPair, JoinPair, PairFigures, RunPair
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.health.judge import State
from ftrain_launcher.health.round import HealthRounds
from ftrain_launcher.health.shown import shown
from ftrain_launcher.health.table import text
from ftrain_launcher.job.events import NodeChecked
from ftrain_launcher.job.membership import Node, NodeState
from ftrain_launcher.questions import CheckHealth, ClockRead, ClockWanted, Health, Probe, Probed, Reply


class Agents:
    """Nodes that answer at once; all that they were asked is kept, in order."""

    def __init__(self, hosts: dict[str, str]) -> None:
        self.lines: dict[str, Any] = {}
        self.nodes = {
            name: Node(name=name, number=i, state=NodeState.IDLE, hostname=host, host=host, daemon_port=1000 + i)
            for i, (name, host) in enumerate(hosts.items())
        }
        self.requests = Requests(self.lines)
        self.rounds = HealthRounds(self.requests, self.nodes)
        self.asked: list[tuple[str, object]] = []
        self.slow: set[str] = set()
        """Whose links are slow."""
        self.once: set[tuple[str, str]] = set()
        """Links that are slow the first time only."""
        self.answers: dict[str, Callable[[object], object]] = {}
        """By node: what its health process answers instead."""

    def connect(self) -> None:
        for name in self.nodes:
            self.lines[name] = Line(self, name)

    def hear(self, node: str, message: Any) -> None:
        asyncio.get_running_loop().call_soon(self._answer, node, message)

    def _answer(self, node: str, message: Any) -> None:
        number = message.request
        if isinstance(message, ClockWanted):
            self.requests.take(ClockRead(node, number, 0.0, 1e9))
        elif isinstance(message, Probe):
            (peer,) = message.peers
            self.asked.append((node, peer.node))
            slow = {node, peer.node} & self.slow or (node, peer.node) in self.once
            self.once.discard((node, peer.node))
            self.requests.take(Probed(node=node, request=number, figures=(SLOW if slow else FAST,)))
        else:
            assert isinstance(message, CheckHealth)
            self.asked.append((node, message.task))
            answer = self.answers.get(node, usual)(message.task)
            self.requests.take(Health(node=node, request=number, answer=answer))

    def run(self, *names: str, training: bool = False) -> dict[str, tuple[State, str]]:
        async def work() -> dict[str, tuple[State, str]]:
            self.connect()
            self.checkup, self.verdicts = await self.rounds.run(names, training=training)
            return {h.node: (h.state, "; ".join(h.reasons)) for h in self.verdicts}

        found = asyncio.run(work())
        assert list(found) == list(names)
        return found

    def links(self) -> list[tuple[str, str]]:
        return [(node, what) for node, what in self.asked if isinstance(what, str)]

    def tasks(self, kind: type) -> list[str]:
        return [node for node, what in self.asked if isinstance(what, kind)]


class Line:
    def __init__(self, agents: Agents, name: str) -> None:
        self.agents, self.name = agents, name

    def put(self, message: object) -> None:
        self.agents.hear(self.name, message)


def usual(task: object) -> object:
    match task:
        case CheckNode():
            return SOUND
        case HostPair():
            return Hosting(7)
        case _:
            return PairFigures(0.002, True)


FOUR = {"a": "h1", "b": "h2", "c": "h3", "d": "h4"}


def clocks_apart(found: dict[str, tuple[State, str]]) -> bool:
    return all("its clock is" in words for _, words in found.values())


def test_all_nodes_links_and_clocks_are_measured_and_each_node_is_in_two_groups() -> None:
    agents = Agents(FOUR)
    found = agents.run(*FOUR)
    assert clocks_apart(found)  # made-up clocks stand in 2001
    assert agents.tasks(CheckNode) == list(FOUR)
    assert len(set(agents.links())) == len(agents.links()) == 12
    assert sorted(agents.tasks(RunPair) + agents.tasks(JoinPair)) == sorted([*FOUR, *FOUR])
    assert len(agents.checkup.pairs) == 4


def test_a_link_that_is_slow_once_is_none_and_one_that_stays_slow_is() -> None:
    agents = Agents(FOUR)
    agents.once = {("a", "b")}
    found = agents.run(*FOUR)
    assert all("MB/s" not in words for _, words in found.values())
    assert agents.links().count(("a", "b")) == 2
    agents.slow = {"c"}
    found = agents.run(*FOUR)
    assert {name for name, (state, _) in found.items() if state is State.BAD} == {"c"}


def test_nodes_of_one_host_are_measured_one_after_the_other() -> None:
    agents = Agents(dict.fromkeys("abc", "h1"))
    busy: set[str] = set()

    hear = agents.hear

    def watch(node: str, message: Any) -> None:
        if isinstance(message, CheckHealth) and isinstance(message.task, CheckNode):
            assert not busy
            busy.add(node)
        hear(node, message)

    take = agents.requests.take

    def taken(health: Reply) -> None:
        busy.discard(health.node)
        take(health)

    agents.hear, agents.requests.take = watch, taken  # type: ignore[method-assign]
    agents.run("a", "b", "c")
    assert not busy


def test_one_node_is_measured_with_some_of_the_others_and_compared_with_what_is_known_of_them() -> None:
    agents = Agents({**FOUR, "e": "h5"})
    agents.run(*FOUR)
    agents.asked.clear()
    agents.slow = {"e"}
    agents.answers["e"] = lambda task: (
        msgspec.structs.replace(SOUND, matmul_gflops=20.0) if isinstance(task, CheckNode) else usual(task)
    )
    found = agents.run("e")
    assert len({other for _, other in agents.links() if other != "e"}) == 3
    assert agents.tasks(CheckNode) == ["e"]
    assert found["e"][0] is State.BAD
    assert "multiplies 20 GFLOP/s, others 60" in found["e"][1]


def test_who_cannot_be_checked_is_bad_and_holds_up_nobody() -> None:
    agents = Agents(FOUR)
    agents.answers["b"] = lambda task: Failed("no torch")
    found = agents.run(*FOUR)
    assert found["b"][0] is State.BAD
    assert "it could not be checked: no torch" in found["b"][1]
    assert found["a"][0] is not State.BAD
    assert not any("b" in link for link in agents.links())


@pytest.mark.parametrize("training", [False, True])
def test_the_answer_is_json_and_a_table(training: bool) -> None:
    agents = Agents({"a": "h1", "b": "h2"})
    agents.slow = {"b"}
    agents.run("a", "b", training=training)
    answer = json.loads(msgspec.json.encode(shown("job", agents.checkup, agents.verdicts, agents.nodes)))
    lines = text(answer).splitlines()
    assert lines[0].split()[:3] == ["node", "host", "GFLOP/s"]
    assert lines[1].split()[:4] == ["a", "h1", "60.0", "100%"]
    assert any(line.startswith("a: suspicious; ") for line in lines)
    assert any("beside training" in line for line in lines) == training


def test_whatever_happens_to_a_check_it_is_told_of() -> None:
    agents = Agents({"a": "h1"})
    told: list[NodeChecked] = []

    async def work(name: str) -> None:
        agents.connect()
        await asyncio.wait([agents.rounds.report([name], told.append)])
        await asyncio.sleep(0)

    asyncio.run(work("a"))
    agents.requests.ask = lambda *_: 1 // 0  # type: ignore[assignment, method-assign]
    asyncio.run(work("a"))
    assert [(event.node, event.ok) for event in told] == [("a", True), ("a", False)]
    assert "ZeroDivisionError" in told[1].reason
