"""The controller's HTTP side for people: what ``ftrain status`` and its like ask, answered in JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Annotated

import msgspec
from aiohttp import web

from ftrain_launcher.control import verification, views
from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.control.requests import Requests
from ftrain_launcher.engine_messages import FlushJob
from ftrain_launcher.errors import UsageError
from ftrain_launcher.health.round import HealthRounds
from ftrain_launcher.health.shown import shown
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.events import CordonNode, Event, Leave, UncordonNode
from ftrain_launcher.job.membership import Node, NodeState, Phase
from ftrain_launcher.to_agent import Inject
from ftrain_launcher.trace.records import STEPS_MAX, JobTrace
from ftrain_launcher.trace.tracing import Tracing

SECONDS_MAX = 365 * 86400.0
"""The longest deadline that is taken."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InjectRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/inject``."""

    kind: str
    rank: int | None = None
    """For ``kill-worker``."""
    node: str | None = None
    """For the others: a name, or the position that the node holds."""


class CordonRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/cordon``; ``node`` is a name, or the position that the node holds."""

    node: str
    reason: str = ""
    leave: Leave = Leave.AT_NEXT_FAULT


class UncordonRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/uncordon``."""

    node: str
    force: bool = False


class FlushRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/flush``."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=SECONDS_MAX)]
    reason: str = ""


class HealthRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/health``."""

    nodes: tuple[str, ...] = ()
    """Names, or positions; empty: all."""


class OperatorApi:
    """Answers from the coordinator and from what the agents last said; has agents break things."""

    def __init__(
        self,
        coordinator: Coordinator,
        observations: views.Observations,
        outboxes: Mapping[str, Outbox],
        requests: Requests,
        submit: Callable[[Event], Awaitable[None]],
    ) -> None:
        """``submit`` takes what operators want of the job, and returns once that will not be forgotten."""
        self._coordinator, self._observations, self._outboxes = coordinator, observations, outboxes
        self._submit = submit
        self._requests = requests
        self._tracing = Tracing(requests)
        self.health = HealthRounds(requests, coordinator.nodes)

    def routes(self, guard: Callable[[Handler], Handler]) -> list[web.RouteDef]:
        """All questions, each behind ``guard``."""
        return [
            web.get("/api/status", guard(self._status)),
            web.get("/api/incidents", guard(self._incidents)),
            web.get("/api/incidents/{number:[0-9]+}", guard(self._incident)),
            web.get("/api/trace", guard(self._trace)),
            web.get("/api/nodes", guard(self._nodes)),
            web.post("/api/cordon", guard(self._cordon)),
            web.post("/api/uncordon", guard(self._uncordon)),
            web.get("/api/flush", guard(self._flushed)),
            web.post("/api/flush", guard(self._flush)),
            web.get("/api/snapshots", guard(self._snapshots)),
            web.post("/api/verify", guard(self._verify)),
            web.post("/api/health", guard(self._check_health)),
            web.post("/api/inject", guard(self._inject)),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        return _json(views.status(self._coordinator, self._observations, os.getpid()))

    async def _incidents(self, request: web.Request) -> web.Response:
        return _json(views.incidents(self._coordinator))

    async def _incident(self, request: web.Request) -> web.Response:
        try:
            return _json(views.incident(self._coordinator, int(request.match_info["number"])))
        except UsageError as error:
            raise web.HTTPNotFound(text=str(error)) from error

    async def _trace(self, request: web.Request) -> web.Response:
        steps = request.query.get("steps", "")
        if not steps.isdecimal() or not 0 < int(steps) <= STEPS_MAX:
            raise web.HTTPBadRequest(text=f"steps={steps}: give 1 to {STEPS_MAX}")
        job = self._coordinator
        members = [name for name in job.positions if name is not None]
        nodes = await self._tracing.run(members, len(job.ranks), int(steps))
        return _json(JobTrace(job=job.config.work.job, nodes=nodes))

    async def _nodes(self, request: web.Request) -> web.Response:
        return _json(views.nodes(self._coordinator, time.time()))

    async def _cordon(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=CordonRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"not a node to cordon: {error}") from error
        node = self._joined(wanted.node)
        await self._submit(CordonNode(node.name, wanted.reason, wanted.leave))
        return self._shown(node)

    async def _uncordon(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=UncordonRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"not a node to uncordon: {error}") from error
        node = self._joined(wanted.node)
        if node.cordon is None:
            raise web.HTTPConflict(text=f"{node.name} is not cordoned")
        await self._submit(UncordonNode(node.name, wanted.force))
        return self._shown(node)

    async def _flush(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=FlushRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"not a time to flush within: {error}") from error
        await self._submit(FlushJob(wanted.reason or "ftrain flush", wanted.seconds))
        return await self._flushed(request)

    async def _flushed(self, request: web.Request) -> web.Response:
        return _json(views.flush(self._coordinator))

    def _shown(self, node: Node) -> web.Response:
        quarantine = self._coordinator.quarantine
        found = quarantine.strikes(time.time()).get(quarantine.machines()[node.name], ())
        return _json(views.node(self._coordinator, node, found))

    def _joined(self, word: str) -> Node:
        node = self._coordinator.nodes[self._node_called(word)]
        if node.state is NodeState.STARTING:
            raise web.HTTPConflict(text=f"{node.name} has not joined yet: try again")
        return node

    async def _snapshots(self, request: web.Request) -> web.Response:
        return _json(views.snapshots(self._coordinator, self._observations, time.time()))

    async def _verify(self, request: web.Request) -> web.Response:
        members = [name for name in self._coordinator.positions if name is not None]
        answers = await verification.verify_all(self._requests, members)
        self._check_still_there()
        return _json(verification.shown(self._coordinator.config.work.job, answers, self._coordinator.worlds))

    async def _check_health(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=HealthRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"not a list of nodes: {error}") from error
        job = self._coordinator
        names = [self._node_called(word) for word in dict.fromkeys(wanted.nodes)]
        names = names or [node.name for node in job.nodes.values() if node.connection is not None and not node.gone]
        members = [name for name in job.positions if name is not None]
        training = job.phase is Phase.RUNNING and not set(members).isdisjoint(names)
        checkup, verdicts = await self.health.run(names, training=training)
        self._check_still_there()
        return _json(shown(job.config.work.job, checkup, verdicts, job.nodes))

    def _check_still_there(self) -> None:
        """Nodes that are being ended do not answer, and are not ill for that."""
        if self._coordinator.phase in (Phase.ENDING, Phase.ENDED):
            raise web.HTTPConflict(text="the job has ended while its nodes were asked")

    async def _inject(self, request: web.Request) -> web.Response:
        try:
            wanted = msgspec.json.decode(await request.read(), type=InjectRequest)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"not a fault to inject: {error}") from error
        node = self._node_of(wanted)
        outbox = self._outboxes.get(node)
        if outbox is None:
            raise web.HTTPConflict(text=f"{node} is not connected just now: try again")
        outbox.put(Inject(kind=wanted.kind, rank=wanted.rank))
        return _json({"node": node, "kind": wanted.kind, "rank": wanted.rank})

    def _node_of(self, wanted: InjectRequest) -> str:
        job = self._coordinator
        if wanted.kind == "kill-worker":
            rank = job.ranks.get(wanted.rank) if wanted.rank is not None else None
            if rank is None:
                raise web.HTTPNotFound(text=f"no rank {wanted.rank}: {_listed('rank', map(str, sorted(job.ranks)))}")
            return rank.node
        return self._node_called(wanted.node or "")

    def _node_called(self, word: str) -> str:
        """The node of a name, or the one that holds a position."""
        job, called = self._coordinator, f"at position {word}" if word.isdecimal() else word
        if word.isdecimal() and int(word) < len(job.positions):
            word = job.positions[int(word)] or word
        if word not in job.nodes or job.nodes[word].gone:
            names = (node.name for node in job.nodes.values() if not node.gone)
            raise web.HTTPNotFound(text=f"no node {called}: {_listed('node', names)}")
        return word


def _listed(kind: str, names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"{kind}s are {listed}" if listed else f"there is no {kind} any more"


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
