"""The launchers that are connected to the controller, which node runs at whose host, and who may join."""

from __future__ import annotations

import asyncio

from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.engine_messages import JobEnded, Offer, ReapNode, StartNode
from ftrain_launcher.job.events import JobConfig
from ftrain_launcher.protocol import PROTOCOL_VERSION


def refusal(offer: Offer, config: JobConfig) -> str | None:
    """Pure: why a host cannot take part in a job, in one line; None: it can."""
    work = config.work
    if offer.protocol != PROTOCOL_VERSION:
        mine = f"the controller's {PROTOCOL_VERSION}"
        return f"this ftrain speaks protocol {offer.protocol}, {mine}: install one everywhere"
    if offer.job not in ("", work.job):
        return f"--name {offer.job}, but the job at this controller is {work.job}"
    for what, here, there in (
        ("the script", offer.argv[:1], work.argv[:1]),
        ("its arguments", offer.argv[1:], work.argv[1:]),
        ("-m", (offer.kind,), (work.kind,)),
        ("--nnodes", _size(offer), _size(config)),
        ("--nproc-per-node", (offer.nproc_per_node,), (work.nproc_per_node,)),
        ("--parity", (offer.parity,), (work.parity,)),
        ("--role", (offer.role,), (work.role,)),
    ):
        if here != there:
            return f"{what} must be the same on all hosts: {_said(here)} here, {_said(there)} at the controller's host"
    return None


def _size(job: Offer | JobConfig) -> tuple[object, ...]:
    return (job.nodes,) if job.nodes_min is None else (f"{job.nodes_min}:{job.nodes}",)


def _said(words: tuple[object, ...]) -> str:
    return " ".join(map(str, words)) or "none"


class Launchers:
    """Whom to tell what. Of real hosts each has its launcher; one that emulates nodes provides all that are wanted."""

    def __init__(self) -> None:
        self._connected: list[Outbox] = []
        self._of_node: dict[str, Outbox] = {}
        self._providers: dict[str, Outbox] = {}
        """Who starts a node, by the mark of its host's launcher; "": who emulates nodes, and starts them all."""

    def add(self, outbox: Outbox) -> None:
        """One has connected."""
        self._connected.append(outbox)

    def remove(self, outbox: Outbox) -> None:
        """One has gone; its nodes may still be there."""
        self._connected.remove(outbox)
        self._of_node = {node: other for node, other in self._of_node.items() if other is not outbox}
        self._providers = {mark: other for mark, other in self._providers.items() if other is not outbox}

    def provides(self, outbox: Outbox, mark: str = "") -> None:
        """This one has room for the nodes that are meant for its host."""
        self._providers[mark] = outbox

    def runs(self, outbox: Outbox, node: str) -> None:
        """This one's machine runs a node."""
        self._of_node[node] = outbox

    def start(self, message: StartNode, mark: str = "") -> None:
        """Say it to whose host the node is meant for; who is away is asked again when it comes back."""
        if (provider := self._providers.get(mark)) is not None:
            self.runs(provider, message.node)
            provider.put(message)

    def tell(self, message: ReapNode | JobEnded) -> None:
        """Say it to whom it concerns; who is away hears how things are when it comes back."""
        match message:
            case ReapNode(node) if node in self._of_node:
                self._of_node.pop(node).put(message)
            case JobEnded():
                for outbox in self._connected:
                    outbox.put(message)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait until all that was said is sent, or the time is over."""
        await asyncio.gather(*(outbox.drain(timeout_seconds) for outbox in self._connected))

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(outbox.close() for outbox in self._connected))
