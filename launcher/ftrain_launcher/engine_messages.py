"""Typed messages between controller and launchers, whose engines provide nodes; and what a host offers to take part."""

from __future__ import annotations

import signal

import msgspec

from ftrain_launcher.protocol import PROTOCOL_VERSION


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A host that would take part, and what its user asked for: it must be the same on all hosts."""

    launcher: str
    """Tells launchers apart; made anew by each."""
    hostname: str
    job: str = ""
    """The name that the user gave; empty: none."""
    kind: str
    argv: tuple[str, ...]
    nodes: int
    nodes_min: int | None = None
    """None: as many as ``nodes``, always."""
    nproc_per_node: int
    parity: int
    node_rank: int | None = None
    """The position that this host is meant for."""
    role: str = "default"
    protocol: int = PROTOCOL_VERSION


class StartNode(msgspec.Struct, frozen=True, tag="start_node"):
    """Provide one more node."""

    node: str


class ReapNode(msgspec.Struct, frozen=True, tag="reap_node"):
    """The job has given this node up: nothing of it may go on running."""

    node: str


class JobEnded(msgspec.Struct, frozen=True, tag="job_ended"):
    """The controller is done, or does not want this host; this is what the launcher returns."""

    exit_code: int
    message: str


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Answer to Knock: the job's record, in JSON."""

    record: bytes


ToEngine = StartNode | ReapNode | JobEnded | Welcome


class Knock(msgspec.Struct, frozen=True, tag="knock"):
    """A new host asks what the job is, and whether it is wanted; the line is closed after the answer."""

    offer: Offer


class EngineHello(msgspec.Struct, frozen=True, tag="engine"):
    """First on every connection of the engine, and whenever its last node is gone: the nodes that it knows to run."""

    nodes: tuple[str, ...]
    offer: Offer | None = None
    """The host that has room for a node; None: nodes are emulated, as many as are wanted."""


class NodeGone(msgspec.Struct, frozen=True, tag="node_gone"):
    """A node's processes are gone: there is no use in waiting for its agent."""

    node: str
    reason: str


class StopJob(msgspec.Struct, frozen=True, tag="stop_job"):
    """The user wants the job to end."""

    reason: str
    exit_code: int
    signal: int = signal.SIGTERM
    """What said so, and is handed on to the workers."""


class FlushJob(msgspec.Struct, frozen=True, tag="flush_job"):
    """The job is to end at the end of a step, with its state on storage (`flushing.py`)."""

    reason: str
    seconds: float
    """Within so many, the end of all processes included."""


class HostLeaves(msgspec.Struct, frozen=True, tag="host_leaves"):
    """A host is to be switched off: its node's ranks go to another at the end of a step, and it is let go then."""

    node: str
    reason: str


FromEngine = Knock | EngineHello | NodeGone | StopJob | FlushJob | HostLeaves
