"""Tasks and answers of a health process. No torch: the launcher speaks these words, too."""

from __future__ import annotations

import msgspec


class CheckNode(msgspec.Struct, frozen=True, tag="check_node"):
    """Measure this node. Answered by ``NodeFigures``."""

    log_folder: str = ""
    """Where to write, to see how fast that is; the node's agent fills in its own folders."""
    arena_folder: str = ""
    """Where snapshots are kept."""


class HostPair(msgspec.Struct, frozen=True, tag="host_pair"):
    """Begin a group of two with another node's health process. Answered by ``Hosting``."""

    host: str
    """The address to listen on."""


class RunPair(msgspec.Struct, frozen=True, tag="run_pair"):
    """Go through with it. Answered by ``PairFigures``."""


class JoinPair(msgspec.Struct, frozen=True, tag="join_pair"):
    """Join the group of two of another node, and go through with it. Answered by ``PairFigures``."""

    host: str
    port: int


Task = CheckNode | HostPair | RunPair | JoinPair


class GpuFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator."""

    name: str
    matmul_tflops: float | None = None
    memory_gb_per_second: float | None = None
    exact: bool = True
    """Its products are right, to the last bit."""
    failure: str = ""
    """Why it was not measured; empty: it was."""


class NodeFigures(msgspec.Struct, frozen=True, tag="node_figures", kw_only=True):
    """One node. Rates are of one thread, per second of processor time; ``cpu_share`` tells how much of that there was.

    So a processor that is slow is told from one that is busy with something else.
    """

    python: str
    torch: str
    ftrain: str
    cpu_model: str
    cpu_capability: str
    """The instruction set that torch uses."""
    cores: float
    """That this process may use: its affinity, its group's quota."""
    open_files_max: int
    matmul_gflops: float
    cpu_share: float
    """Processor time for wall time, while multiplying: 1 if nobody else wanted the core."""
    exact: bool
    """Products of matrices of whole numbers are right, to the last bit, each time."""
    bits: str
    """A hash of a product of fractions: equal on equal hardware with equal libraries."""
    memory_gb_per_second: float
    """Read and written, together."""
    loopback_gb_per_second: float
    disk_mb_per_second: float | None = None
    """Of the wall clock."""
    disk_free_bytes: int | None = None
    disk_failure: str = ""
    """Why nothing could be written; empty: it could."""
    arena_bytes: int
    arena_free_bytes: int
    gpus: tuple[GpuFigures, ...] = ()


class Hosting(msgspec.Struct, frozen=True, tag="hosting"):
    """Answer to HostPair."""

    port: int


class PairFigures(msgspec.Struct, frozen=True, tag="pair_figures"):
    """Answer to RunPair and JoinPair."""

    all_reduce_seconds: float
    """The median of some all-reduces of ``ALL_REDUCE_BYTES``."""
    exact: bool
    """The sums are right."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The task could not be done."""

    reason: str


Answer = NodeFigures | Hosting | PairFigures | Failed

ALL_REDUCE_BYTES = 1 << 20
PAIR_SECONDS_MAX = 15.0
"""A group of two that does not come together, or gets nothing through, gives up after so long."""
NODE_SECONDS_MAX = 60.0
"""The check of one node; one that is not overloaded takes three to five seconds, most of them torch's import."""
