"""Where a node stands: which words of the controller's it follows, and what a new agent takes over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from unit.coordinator_job import config

from ftrain_launcher.from_agent import FromAgent, Trouble
from ftrain_launcher.node.daemons import DaemonFailed
from ftrain_launcher.node.node_daemon import NodeDaemon
from ftrain_launcher.node.standing import Standing
from ftrain_launcher.node.state import NodeFile, NodeRecord
from ftrain_launcher.node.told import Key, Told
from ftrain_launcher.to_agent import Form, Stop


def form(generation: int) -> Form:
    return Form(
        generation=generation,
        position=0,
        peers=(),
        store_host="h",
        store_port=1,
        restore=None,
        work=config().work,
    )


def stop(generation: int) -> Stop:
    return Stop(generation, host_store=False)


@pytest.fixture
def standing() -> Standing:
    """It runs generation 3."""
    standing = Standing()
    standing.begin_to_stop(3)
    standing.has_stopped()
    standing.begin_to_form(form(3))
    standing.has_formed()
    return standing


def test_a_node_stops_for_newer_generations_only(standing: Standing) -> None:
    assert [standing.obeys(stop(generation)) for generation in (2, 3, 4)] == [False, False, True]


def test_who_has_stopped_answers_again_but_not_to_an_older_word(standing: Standing) -> None:
    standing.begin_to_stop(5)
    standing.has_stopped()
    assert [standing.obeys(stop(generation)) for generation in (4, 5)] == [False, True]


def test_a_node_forms_only_what_it_has_stopped_for_and_once(standing: Standing) -> None:
    assert not standing.takes(form(4))
    standing.begin_to_stop(4)
    standing.has_stopped()
    assert [standing.takes(form(generation)) for generation in (3, 4, 5)] == [False, True, False]
    standing.begin_to_form(form(4))
    assert (standing.is_forming, standing.generation) == (True, 4)
    assert not standing.takes(form(4))


def test_what_ends_while_a_generation_is_stopped_is_of_no_running_one(standing: Standing) -> None:
    assert standing.running == form(3)
    standing.begin_to_stop(4)
    assert (standing.running, standing.generation) == (None, 3)


def test_a_new_agent_stands_where_the_last_one_did(tmp_path: Path) -> None:
    file = NodeFile(tmp_path)
    file.write(NodeRecord(node="node-0", agent_pid=1, stopped=3, form=form(3), term=2, accepted=form(3)))
    standing = Standing(file.read())
    assert (standing.generation, standing.is_complete, standing.term) == (3, True, 2)
    assert standing.accepted == form(3)


def test_a_new_agent_of_a_node_that_had_stopped_stops_anew(tmp_path: Path) -> None:
    file = NodeFile(tmp_path)
    file.write(NodeRecord(node="node-0", agent_pid=1, stopped=4))
    assert Standing(file.read()).obeys(stop(4))


def test_only_what_has_a_key_is_told_again_and_not_in_the_next_generation() -> None:
    sent: list[FromAgent] = []
    told = Told(sent.append)
    first, second, third = (Trouble("node-0", 1, "form_failed", reason) for reason in "abc")
    told.tell(first)
    told.tell(second, ("trouble",))
    told.tell(third, ("trouble",))
    assert sent == [first, second, third]
    assert told.again() == [third]
    told.forget()
    assert told.again() == []


class Keeper:
    """A daemon's process that comes up at ``moves_to``, or where it is to be; None: not at all."""

    def __init__(self, port: int = 0, moves_to: int | None = 0) -> None:
        self.pid: int | None = None
        self.port, self._moves_to = port, moves_to
        self.killed_since = ""
        self.configured: list[int] = []

    async def adopt(self, pid: int, port: int) -> bool:
        return False

    async def start(self) -> None:
        if self._moves_to is None:
            raise DaemonFailed("the snapshot daemon of node-0 does not start")
        self.pid, self.port, self.killed_since = 7, self._moves_to or self.port, ""

    async def call(self, question: Any) -> None:
        question(self)

    def configure(self, membership: Any) -> None:
        self.configured.append(membership.generation)


def daemon(keeper: Any, said: list[tuple[FromAgent, Key]]) -> NodeDaemon:
    return NodeDaemon(keeper, "node-0", lambda message, key: said.append((message, key)))


def test_a_daemon_that_died_with_its_agent_is_started_where_its_peers_look_for_it() -> None:
    keeper = Keeper()
    before = NodeRecord(node="node-0", agent_pid=1, daemon_pid=None, daemon_port=4321, stopped=3, form=form(3))
    asyncio.run(daemon(keeper, []).begin(before, Standing(before)))
    assert (keeper.port, keeper.configured) == (4321, [3])


@pytest.mark.parametrize(
    ("moves_to", "kind", "serves"), [(0, "daemon_exit", True), (99, "form_failed", False), (None, "form_failed", False)]
)
def test_a_generation_goes_on_with_a_new_daemon_only_on_its_port(
    standing: Standing, moves_to: int | None, kind: str, serves: bool
) -> None:
    said: list[tuple[FromAgent, Key]] = []
    assert asyncio.run(daemon(Keeper(4321, moves_to), said).replace(standing)) is serves
    ((trouble, _),) = said
    assert isinstance(trouble, Trouble)
    assert (trouble.kind, trouble.generation) == (kind, 3)


def test_a_daemon_that_had_to_be_killed_is_told_with_the_reason(standing: Standing) -> None:
    said: list[tuple[FromAgent, Key]] = []
    keeper = Keeper(4321)
    keeper.killed_since = "a signal had stopped it"
    assert asyncio.run(daemon(keeper, said).replace(standing))
    ((trouble, _),) = said
    assert isinstance(trouble, Trouble)
    assert trouble.reason.startswith("killed, since a signal had stopped it; restarted in")
