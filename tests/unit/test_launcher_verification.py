"""Checking what is stored: gathering the nodes' answers, and telling damage once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiohttp import web
from unit.coordinator_job import Job, snapshot

from ftrain_launcher.control import verification
from ftrain_launcher.control.api import OperatorApi
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.control.verification import shown, verify_all
from ftrain_launcher.engine_messages import StopJob
from ftrain_launcher.from_agent import Trouble
from ftrain_launcher.job.worlds import World, Worlds
from ftrain_launcher.node.checking import DamageWatch
from ftrain_launcher.questions import Verified, Verify
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.messages import LaneReport
from ftrain_snapshot.status import DaemonStatus, Levels

WORLDS = Worlds()
WORLDS.begin(World(first=1, nodes=3, parity=1, groups=((0, 1, 2),)))


class Line:
    """An agent's outbox; ``hear`` is what the agent does about a request."""

    def __init__(self, hear: Callable[[Verify], None]) -> None:
        self.put = hear


def test_every_node_has_an_answer() -> None:
    lines: dict[str, Any] = {}
    requests = Requests(lines)
    lines["node-0"] = Line(lambda wish: requests.take(Verified(node="node-0", request=wish.request)))

    async def ask() -> list[Verified]:
        return await verify_all(requests, ["node-0", "node-1"])

    first, second = asyncio.run(ask())
    assert (first.node, first.failure) == ("node-0", "")
    assert (second.node, second.failure) == ("node-1", "its agent is not connected")


def test_an_agent_that_leaves_is_not_waited_for() -> None:
    lines: dict[str, Any] = {}
    lines["node-0"] = Line(lambda wish: lines.clear())
    requests = Requests(lines)

    async def ask() -> list[Verified]:
        return await verify_all(requests, ["node-0"])

    (answer,) = asyncio.run(ask())
    assert answer.failure == "it did not answer"


def report(damaged: int, repaired: int, *damage: Damage) -> Verified:
    lane = LaneReport(snapshot(7), 1, 0, checked=10, damaged=damaged, repaired=repaired, damage=damage)
    return Verified(node="node-1", request=1, lanes=(lane,))


def test_what_is_repaired_is_sound_and_what_is_not_is_lost() -> None:
    assert shown("job", [report(0, 0)], WORLDS)["sound"]
    assert shown("job", [report(2, 2)], WORLDS)["sound"]
    assert not shown("job", [report(2, 1)], WORLDS)["sound"]
    assert not shown("job", [report(0, 0), Verified(node="node-2", request=1, failure="gone")], WORLDS)["sound"]


def test_damage_is_named_by_chunk_for_data_and_by_stripe_for_parity() -> None:
    answer = shown("job", [report(2, 2, Damage(0, 2, 3, 4), Damage(0, 1, 5, 6))], WORLDS)
    (lane,) = answer["nodes"][0]["lanes"]
    data, parity = lane["damage"]
    # Position 1 keeps parity in rotation 1 and data in rotations 0 and 2: chunks 0, 2, 4, 6 and 1, 3, 5, 7.
    assert (data["kind"], data["chunk"], data["first_stripe"]) == ("data", 7, 3)
    assert (parity["kind"], parity["chunk"], parity["first_stripe"]) == ("parity", None, 5)


def status(damaged: int, repaired: int, generation: int = 1) -> DaemonStatus:
    return DaemonStatus(generation, False, Levels(), 0, 0, True, damaged=damaged, repaired=repaired)


def test_damage_is_told_once_and_when_it_is_known_what_became_of_it() -> None:
    watch = DamageWatch("node-1")
    assert watch.news(status(0, 0)) is None
    assert watch.news(status(1, 0)) is None  # its repair is under way
    assert watch.news(status(1, 1)) == Trouble(
        "node-1", 1, "chunks_damaged", "1 in generation 1, all repaired from parity"
    )
    assert watch.news(status(1, 1)) is None
    assert watch.news(status(2, 1)) is None
    assert watch.news(status(2, 1)) == Trouble("node-1", 1, "chunks_damaged", "2 in generation 1, 1 not repaired")
    assert watch.news(status(2, 1)) is None
    assert watch.news(status(0, 0, generation=2)) is None


def test_damage_is_an_incident_that_stops_nobody() -> None:
    job = Job()
    job.run()
    job.tell(Trouble("node-1", 1, "chunks_damaged", "1 in generation 1, all repaired from parity"))
    (incident,) = job.coordinator.incidents
    assert incident.closed
    assert job.coordinator.generation == 1
    assert job.news[-1] == (
        "node-1 found damaged chunks of its snapshots (1 in generation 1, all repaired from parity); training goes on"
    )


def test_a_job_that_ends_while_its_nodes_are_asked_has_no_sick_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job()
    job.run()

    async def ask(*_: object) -> dict[str, object]:
        job.tell(StopJob("enough", 1))
        return {}

    monkeypatch.setattr(verification, "verify_all", ask)
    nothing = cast(Any, None)
    api = OperatorApi(job.coordinator, nothing, {}, nothing, nothing)
    with pytest.raises(web.HTTPConflict):
        asyncio.run(api._verify(nothing))
