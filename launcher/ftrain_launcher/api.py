"""The controller's HTTP side for people: what ``ftrain status`` and its like ask, answered in JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from ftrain_launcher import verification, views
from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.messages import Inject
from ftrain_launcher.outbox import Outbox

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InjectRequest(msgspec.Struct, frozen=True):
    """The body of ``POST /api/inject``."""

    kind: str
    rank: int | None = None
    """For ``kill-worker``."""
    node: str | None = None
    """For the others: a name, or the position that the node holds."""


class OperatorApi:
    """Answers from the coordinator and from what the agents last said; has agents break things."""

    def __init__(
        self, coordinator: Coordinator, observations: views.Observations, outboxes: Mapping[str, Outbox]
    ) -> None:
        self._coordinator, self._observations, self._outboxes = coordinator, observations, outboxes
        self.verification = verification.Verification(outboxes)
        """Takes in what agents answer."""

    def routes(self, guard: Callable[[Handler], Handler]) -> list[web.RouteDef]:
        """All questions, each behind ``guard``."""
        return [
            web.get("/api/status", guard(self._status)),
            web.get("/api/incidents", guard(self._incidents)),
            web.get("/api/snapshots", guard(self._snapshots)),
            web.post("/api/verify", guard(self._verify)),
            web.post("/api/inject", guard(self._inject)),
        ]

    async def _status(self, request: web.Request) -> web.Response:
        return _json(views.status(self._coordinator, self._observations, os.getpid()))

    async def _incidents(self, request: web.Request) -> web.Response:
        return _json(views.incidents(self._coordinator))

    async def _snapshots(self, request: web.Request) -> web.Response:
        return _json(views.snapshots(self._coordinator, self._observations, time.time()))

    async def _verify(self, request: web.Request) -> web.Response:
        answers = await self.verification.run(name for name in self._coordinator.positions if name is not None)
        work = self._coordinator.config.work
        return _json(verification.shown(work.job, answers, self._coordinator.groups, work.parity))

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
                raise web.HTTPNotFound(text=f"no rank {wanted.rank}: ranks are {sorted(job.ranks)}")
            return rank.node
        word = wanted.node or ""
        if word.isdigit() and int(word) < len(job.positions):
            word = job.positions[int(word)] or word
        if word not in job.nodes or job.nodes[word].gone:
            names = ", ".join(n.name for n in job.nodes.values() if not n.gone)
            raise web.HTTPNotFound(text=f"no node {wanted.node}: nodes are {names}")
        return word


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
