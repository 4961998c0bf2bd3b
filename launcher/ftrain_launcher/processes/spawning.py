"""The words between an agent and the zygote that starts its workers.

Requests go to the zygote, events come from it, each in one frame of ``ftrain_snapshot.frames``. An id names one
process for as long as somebody may ask about it: from its ``Spawn`` until the ``Acknowledge`` of its ``Exited``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ftrain_snapshot import frames

PRELOAD = "ftrain.preload"
"""What a zygote imports unless told otherwise."""
OWNER_GRACE_SECONDS = 20.0
"""How long a zygote and its workers live on while no client is connected."""


class Spawn(msgspec.Struct, frozen=True, kw_only=True, tag="spawn"):
    """Start one process. Answered by ``Spawned``."""

    id: str
    """Chosen by the agent; must not be in use."""
    argv: tuple[str, ...]
    """What becomes ``sys.argv``: the script, the module or the program first."""
    kind: Literal["script", "module", "exec"] = "script"
    env: dict[str, str] = {}
    """Added to the zygote's own environment. What an interpreter reads at its start (PYTHONPATH,
    PYTHONHASHSEED, OMP_NUM_THREADS) has no effect with ``start="fork"``: give it to the zygote."""
    cwd: str
    stdout_path: str
    """Opened for appending; folders are made."""
    stderr_path: str
    """May be the same file as ``stdout_path``."""
    processors: tuple[int, ...] = ()
    """The only ones that it may use; empty: all of the zygote's."""
    start: Literal["fork", "exec"] = "fork"
    """``exec`` starts a new interpreter; ``kind="exec"`` is always started so."""


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """Send a signal to processes by id, so that a reused pid can never be hit. Unknown ids are skipped."""

    ids: tuple[str, ...]
    signal: int
    """SIGKILL goes to the whole process group, any other signal to its leader alone."""


class List(msgspec.Struct, frozen=True, tag="list"):
    """Ask for ``Children``; whoever asked last is the owner and receives ``Exited`` from now on."""


class Acknowledge(msgspec.Struct, frozen=True, tag="acknowledge"):
    """The exit of ``id`` was noted: the zygote forgets it."""

    id: str


class ForkZygote(msgspec.Struct, frozen=True, tag="fork_zygote"):
    """Become two: the new zygote listens at ``socket_path`` and does not depend on this one's life."""

    socket_path: str
    log_path: str = ""
    """Where the new zygote's own log goes; empty: to this one's."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Ask (SIGTERM), wait ``grace_seconds``, kill, and end; the closed connection is the answer."""

    grace_seconds: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """First on every connection."""

    pid: int
    preload: str
    """The module that was imported; empty: none."""
    preload_seconds: float
    threads: int
    """More than one: ``start="fork"`` falls back to ``exec``."""


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    """The answer to ``Spawn``."""

    id: str
    pid: int
    error: str
    """Why nothing was started; empty: it was."""


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """A process ended; its whole group was killed before it was reaped."""

    id: str
    pid: int
    code: int | None
    """Exit code, or None after a signal."""
    signal: int | None
    with_zygote: bool = False
    """It was killed since its zygote had ended."""


class Children(msgspec.Struct, frozen=True, tag="children"):
    """The answer to ``List``."""

    running: tuple[tuple[str, int], ...]
    """(id, pid)"""
    exited: tuple[Exited, ...]
    """Exits that nobody acknowledged yet, oldest first."""


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """The answer to ``ForkZygote``."""

    pid: int
    error: str


Request = Spawn | Kill | List | Acknowledge | ForkZygote | Shutdown
Event = Ready | Spawned | Exited | Children | Forked

_encoder = msgspec.msgpack.Encoder()
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_event = msgspec.msgpack.Decoder(Event).decode


def encode(message: Request | Event) -> bytes:
    """One whole frame."""
    return frames.encode_frame(_encoder.encode(message))
