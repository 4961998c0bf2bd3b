"""What the workers of a job run, as its user asked for it."""

from __future__ import annotations

from typing import Literal

import msgspec

from ftrain_launcher.processes.streams import Streams


class Durable(msgspec.Struct, frozen=True, kw_only=True):
    """Where checkpoints go that outlive the nodes' memory, and when."""

    url: str
    """Anything that fsspec opens, the same on every node; paths are absolute."""
    every: int
    """One is due at every so many steps."""
    keep: int = 2
    """So many complete ones stay."""
    write_timeout_seconds: float = 3600.0
    """How long the writing of one may take."""


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What the workers run: the same on every node and in every generation, but that few nodes have less parity."""

    job: str
    argv: tuple[str, ...]
    """The script (or module name) and its arguments."""
    kind: Literal["script", "module", "exec"] = "script"
    """A script, a module (``-m``), or a program that is not Python."""
    folder: str
    """Working directory."""
    log_folder: str
    nproc_per_node: int
    snapshot_every: int
    """Steps between snapshots; 0: as often as costs little (`ftrain.cadence`)."""
    parity: int
    codec: str = "auto"
    """Which engine computes parity: ``auto``, ``numpy``, ``isal`` or ``zfec``."""
    protect_bytes_per_second: int = 0
    """What a node may send at most for parity; 0: no cap."""
    max_restarts: int
    restarts_chosen: bool = False
    """The user said how many; failures of scripts that tell no steps are then counted, not compared."""
    demote_after_nan: bool = True
    """After losses that are not finite, go on from a snapshot before the newest."""
    check_replicas: int = 100
    """Steps between comparisons of what must be equal on several ranks; 0: never."""
    collective_timeout_seconds: float | None = None
    """How long an operation of a process group may take, where the script does not say; None: torch's default."""
    elastic: bool = False
    """The job may go on with another number of nodes (docs/elastic.md)."""
    deterministic_reduction: bool = False
    """Gradients are summed in an order that no world changes (docs/exactness.md)."""
    durable: Durable | None = None
    """None: snapshots are kept in memory alone."""
    zygote: bool = True
    """Fork the workers from a process that has torch imported."""
    in_process: bool = False
    """Workers that can go on in the next generation in the same processes (docs/recovery.md)."""
    standby: int = 0
    """Processes on each node that wait for a rank to be lost."""
    abort_grace_seconds: float = 2.0
    """How long a worker may take to leave its generation before it is killed."""
    environment: dict[str, str] = {}
    """Variables set for every worker, over the agent's own environment."""
    role: str = "default"
    """What workers are told that they are: torchrun's word."""
    streams: Streams = Streams()
    """What the terminal shows of them."""
    virtual_local_rank: bool = False
    """Each worker sees one GPU, its own, and LOCAL_RANK is 0."""
    numa_binding: str = ""
    """How workers are bound to the processors near their GPUs (`numa.MODES`); empty: they are not."""
    store_port: int = 0
    """Where each generation's store listens; 0: on any free port."""

    @property
    def start(self) -> Literal["fork", "exec"]:
        """How its processes are started."""
        return "fork" if self.zygote else "exec"
