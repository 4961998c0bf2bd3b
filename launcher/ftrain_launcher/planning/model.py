"""Pure: what a job's snapshots cost and survive, and the same for what rivals do.

A *scheme* says where the bytes go; `outcomes` puts the job's figures into it, by `formulas`. All schemes have the same
failures, the same links and the same restart, so that they differ in nothing but where the bytes lie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ftrain_launcher.planning import formulas, rates
from ftrain_snapshot.ledger import SLOTS
from ftrain_snapshot.placement import groups

MONTH_DAYS = 30
MONTH_SECONDS = MONTH_DAYS * formulas.DAY_SECONDS
_VERSIONS_OF_RIVALS = 2
"""One that is complete, one that is being written: the least that any scheme can do with."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is planned. All numbers but the parity are more than 0; ``ftrain plan`` checks what it is given."""

    state_bytes: float
    """All ranks together, what is replicated counted once."""
    nodes: int
    nproc_per_node: int
    parity: int
    """m: lost nodes of a group that are survived; less than ``group_size``."""
    group_size: int
    """k + m, at most; at most ``nodes``."""
    failures_per_node_day: float
    step_seconds: float
    restart_seconds: float
    """From a failure to training again, without the moving of bytes."""
    repair_seconds: float | None
    """From a node's loss until its group has all its parity again; None: the restart, and the time the bytes take."""
    stall_seconds: float | None
    """What one of ftrain's snapshots costs training; None: so many copies (rates.SNAPSHOT_COPIES)."""
    copy_bytes_per_second: float
    """One rank's copy into shared memory."""
    protect_bytes_per_second: float
    """What one node may send, and take in, for snapshots."""
    storage_bytes_per_second: float
    """One node's share of the storage."""

    @property
    def bytes_per_node(self) -> float:
        """A node's share of the state."""
        return self.state_bytes / self.nodes

    @property
    def mtbf_seconds(self) -> float:
        """The mean time between failures of the job, which any node stops."""
        return formulas.DAY_SECONDS / (self.nodes * self.failures_per_node_day)

    def copies_seconds(self, copies: float) -> float:
        """The time of so many copies of a rank's bytes."""
        return copies * self.bytes_per_node / self.nproc_per_node / self.copy_bytes_per_second


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Where the bytes of a snapshot go. Shares are of a node's part of the state."""

    name: str
    memory: float
    """Share that lies in a node's memory, all versions."""
    sent: float
    """Share that a node sends per snapshot."""
    repaired: float
    """Share that a node which replaces a lost one receives until all is as before; 0: nothing is lost with a node."""
    cost_seconds: float
    """What a snapshot costs training: the wait, and the slow-down."""
    bytes_per_second: float
    """At which a node sends and receives."""
    group_sizes: tuple[int, ...] = ()
    """Of the groups of which any ``parity`` nodes may be lost; none: storage survives all nodes."""
    parity: int = 0
    every_seconds: float | None = None
    """A fixed interval; None: the best one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a scheme gives for a job: the columns of the table, and what ``--json`` prints."""

    name: str
    memory_bytes_per_node: float
    sent_bytes_per_node: float
    """Per snapshot."""
    sent_bytes_per_node_second: float
    """On average."""
    cost_seconds: float
    lag_seconds: float
    """From capture until a lost node no longer takes it away."""
    young_seconds: float
    daly_seconds: float
    every_steps: int
    interval_seconds: float
    limited_by: str
    """What keeps the interval from being shorter: ``cost`` (Daly), ``step``, ``sending`` or ``fixed``."""
    redone_seconds: float
    """Training that a failure takes away, on average."""
    restart_seconds: float
    """From a failure to training again, the moving of bytes included."""
    exposed_seconds: float
    """After a node's loss, until its group can lose as many as before."""
    losses_per_month: float
    """How often the snapshots themselves are lost, expected."""
    survival_per_month: float
    goodput: float
    """Share of time that is training which stays done, while the snapshots are not lost."""


def ours(job: Job) -> Scheme:
    """Erasure-coded memory, as ``ftrain run`` keeps it: three homes a chunk, rotating parity (docs/snapshots.md)."""
    sizes = tuple(len(members) for members in groups(job.nodes, job.parity, job.group_size))
    # Parity over data of the smallest group: its nodes carry most.
    parity_share = job.parity / (min(sizes) - job.parity)
    names = sorted({f"{size - job.parity}+{job.parity}" for size in sizes}, reverse=True)
    return Scheme(
        name=f"ftrain {', '.join(names)}",
        memory=SLOTS * (1 + parity_share),
        sent=job.parity,
        repaired=1 + parity_share,
        cost_seconds=job.copies_seconds(rates.SNAPSHOT_COPIES) if job.stall_seconds is None else job.stall_seconds,
        bytes_per_second=job.protect_bytes_per_second,
        group_sizes=sizes,
        parity=job.parity,
    )


def replicas(job: Job, copies: int = rates.REPLICAS) -> Scheme:
    """Whole copies in the memory of peers (Gemini, SOSP'23), in groups of as many nodes; at ftrain's cost."""
    sizes = tuple(len(members) for members in groups(job.nodes, copies - 1, copies))
    return replace(
        ours(job),
        name=f"{copies} copies in memory",
        memory=_VERSIONS_OF_RIVALS * copies,
        sent=copies - 1,
        repaired=copies,
        group_sizes=sizes,
        parity=copies - 1,
    )


def disk(job: Job, every_seconds: float | None) -> Scheme:
    """Checkpoints on storage, written beside training from a copy in memory; restarts read all of them back."""
    every = "best interval" if every_seconds is None else f"every {every_seconds / 60:g} min"
    return Scheme(
        name=f"disk, {every}",
        memory=1,
        sent=1,
        repaired=0,
        cost_seconds=job.copies_seconds(rates.DISK_COPIES),
        bytes_per_second=job.storage_bytes_per_second,
        every_seconds=every_seconds,
    )


def schemes(job: Job) -> list[Scheme]:
    """Ours first, then the rivals; replicas need a peer."""
    peers = [replicas(job)] if job.nodes >= rates.REPLICAS else []
    return [ours(job), *peers, disk(job, rates.DISK_EVERY_SECONDS), disk(job, None)]


def outcomes(job: Job) -> list[Outcome]:
    """What each scheme gives, ours first."""
    return [outcome(job, scheme) for scheme in schemes(job)]


def outcome(job: Job, scheme: Scheme) -> Outcome:
    """What one scheme gives."""
    lag = lag_seconds(job, scheme)
    daly = formulas.daly_seconds(scheme.cost_seconds, job.mtbf_seconds)
    steps, limit = _every(job, scheme, daly, lag)
    interval = steps * job.step_seconds
    restart = restart_seconds(job, scheme)
    losses = losses_per_second(job, scheme)
    return Outcome(
        name=scheme.name,
        memory_bytes_per_node=scheme.memory * job.bytes_per_node,
        sent_bytes_per_node=scheme.sent * job.bytes_per_node,
        sent_bytes_per_node_second=scheme.sent * job.bytes_per_node / (interval + scheme.cost_seconds),
        cost_seconds=scheme.cost_seconds,
        lag_seconds=lag,
        young_seconds=formulas.young_seconds(scheme.cost_seconds, job.mtbf_seconds),
        daly_seconds=daly,
        every_steps=steps,
        interval_seconds=interval,
        limited_by=limit,
        redone_seconds=interval / 2 + lag,
        restart_seconds=restart,
        exposed_seconds=exposed_seconds(job, scheme),
        losses_per_month=losses * MONTH_SECONDS,
        survival_per_month=formulas.survival(losses, MONTH_SECONDS),
        goodput=goodput(job, scheme, interval),
    )


def lag_seconds(job: Job, scheme: Scheme) -> float:
    """From capture until the bytes are where they survive: sending goes on beside training, and copying beside it."""
    return scheme.sent * job.bytes_per_node / scheme.bytes_per_second


def restart_seconds(job: Job, scheme: Scheme) -> float:
    """From a failure to training again: processes, and the bytes that the slowest node has to receive."""
    return job.restart_seconds + job.bytes_per_node / scheme.bytes_per_second


def exposed_seconds(job: Job, scheme: Scheme) -> float:
    """How long after a node's loss its group can lose fewer: as given, or the restart and the bytes of the repair."""
    if not scheme.group_sizes:
        return 0.0
    if job.repair_seconds is not None:
        return job.repair_seconds
    return job.restart_seconds + scheme.repaired * job.bytes_per_node / scheme.bytes_per_second


def losses_per_second(job: Job, scheme: Scheme) -> float:
    """How often some group loses more than it can, all groups together."""
    failures = job.failures_per_node_day / formulas.DAY_SECONDS
    window = exposed_seconds(job, scheme)
    return math.fsum(
        scheme.group_sizes.count(size) * formulas.group_losses_per_second(size, scheme.parity, failures, window)
        for size in sorted(set(scheme.group_sizes))
    )


def goodput(job: Job, scheme: Scheme, interval_seconds: float) -> float:
    """At any interval. What was trained while the last snapshot was under way is done again: it counts as restart."""
    restart = restart_seconds(job, scheme) + lag_seconds(job, scheme)
    return formulas.goodput(interval_seconds, scheme.cost_seconds, job.mtbf_seconds, restart)


def _every(job: Job, scheme: Scheme, daly_seconds: float, lag: float) -> tuple[int, str]:
    """Whole steps between snapshots, and what keeps them from being fewer; none overtakes the one before."""
    wanted, limit = (daly_seconds, "cost") if scheme.every_seconds is None else (scheme.every_seconds, "fixed")
    best = round(wanted / job.step_seconds)
    least = math.ceil(lag / job.step_seconds)
    if least > max(1, best):
        return least, "sending"
    return (best, limit) if best > 1 else (1, "step")
