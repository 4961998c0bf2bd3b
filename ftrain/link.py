"""The worker's line to its agent: small typed messages on a unix socket, and a progress word in shared memory.

The agent may be restarted under a running worker, so a send that finds the line cut connects once more; a
worker never fails because its agent is away. This module never imports torch: the agent reads it too.
"""

from __future__ import annotations

import msgspec


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First on every connection: who is speaking."""

    rank: int
    local_rank: int
    pid: int
    generation: int


class Restored(msgspec.Struct, frozen=True, tag="restored"):
    """The rank's state is that of ``version`` (None: there was nothing to restore)."""

    version: int | None
    time: float


class FirstStep(msgspec.Struct, frozen=True, tag="first_step"):
    """The first step of this generation was committed."""

    step: int
    time: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The training function raised."""

    step: int | None
    error: str
    """Exception type and message, one line."""
    traceback: str
    communication: bool
    """It looks like a lost peer (gloo, nccl or store error): likely a consequence, not the cause."""


class OutOfMemory(msgspec.Struct, frozen=True, tag="out_of_memory"):
    """The arena cannot hold the job's snapshots."""

    needed_bytes: int
    available_bytes: int


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The training function returned: what happens to the process from here on is no training fault."""


class StoreReady(msgspec.Struct, frozen=True, tag="store_ready"):
    """From the store process of a generation: it listens."""

    generation: int
    port: int


LinkMessage = Hello | Restored | FirstStep | Failed | OutOfMemory | Finished | StoreReady
