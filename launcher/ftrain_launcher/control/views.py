"""Pure: what operators see of a job, built from the coordinator and from what the agents last said.

The shapes are documented in docs/operations.md and kept stable: scripts depend on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ftrain_launcher.control.story import phases
from ftrain_launcher.detect.verdict import Verdict
from ftrain_launcher.errors import UsageError
from ftrain_launcher.from_agent import RankState, WorkerExit
from ftrain_launcher.job.causes import Sign, classify, describe
from ftrain_launcher.job.coordinator import Coordinator
from ftrain_launcher.job.durable import DurableTier
from ftrain_launcher.job.events import Leave
from ftrain_launcher.job.incidents import Incident
from ftrain_launcher.job.membership import Node, NodeState, Phase
from ftrain_launcher.job.policy import isolations_max
from ftrain_launcher.job.strikes import Strike
from ftrain_snapshot.inventory import Inventory
from ftrain_snapshot.status import DaemonStatus, Levels, Volume
from ftrain_snapshot.words import SnapshotId

CPU_WINDOW_SECONDS = 5.0
"""A daemon's share of a core is taken over so long."""


class Observation(msgspec.Struct, kw_only=True):
    """What an agent last said of its node."""

    agent_pid: int | None = None
    daemon_pid: int | None = None
    generation: int = 0
    ranks: tuple[RankState, ...] = ()
    daemon: DaemonStatus | None = None
    inventory: Inventory | None = None
    seen: float = 0.0
    since: dict[SnapshotId, float] = {}
    """When each of its snapshots was first told of."""
    cpu_share: float | None = None
    """Cores that the daemon kept busy lately."""
    cpu_mark: tuple[int | None, float, float] | None = None
    """The daemon's pid, a time some seconds ago, and its processor seconds then."""

    def take_exit(self, exited: WorkerExit) -> None:
        """One of its workers raised, or is gone."""
        if exited.code is not None or exited.signal is not None:
            self.ranks = tuple(_gone(r) if r.rank == exited.rank else r for r in self.ranks)

    def take_inventory(self, inventory: Inventory, now: float) -> None:
        """What the node holds now."""
        self.inventory = inventory
        self.since = {h.snapshot: self.since.get(h.snapshot, now) for h in inventory.holdings}

    def take_daemon(self, pid: int | None, status: DaemonStatus, now: float) -> None:
        """How the daemon is now."""
        self.daemon = status
        if self.cpu_mark is None or self.cpu_mark[0] != pid:
            self.cpu_mark, self.cpu_share = (pid, now, status.cpu_seconds), None
        elif now - self.cpu_mark[1] >= CPU_WINDOW_SECONDS:
            _, then, used = self.cpu_mark
            self.cpu_share = (status.cpu_seconds - used) / (now - then)
            self.cpu_mark = (pid, now, status.cpu_seconds)


def _gone(rank: RankState) -> RankState:
    return RankState(rank.rank, rank.local_rank, None, "exited", rank.step)


Observations = Mapping[str, Observation]


def levels(coordinator: Coordinator, observations: Observations) -> Levels:
    """The job's levels: what the gate of the newest formed generation said last, or what it started from."""
    for observation in observations.values():
        status = observation.daemon
        if status and status.gate and status.generation == coordinator.formed and status.levels.sealed is not None:
            return msgspec.structs.replace(status.levels, durable=coordinator.durable.newest)
    return msgspec.structs.replace(coordinator.levels, durable=coordinator.durable.newest)


def status(coordinator: Coordinator, observations: Observations, controller_pid: int) -> dict[str, Any]:
    """``ftrain status --json``."""
    now = levels(coordinator, observations)
    counts = _snapshot_counts(observations)
    return {
        "job": coordinator.config.work.job,
        "state": _job_state(coordinator),
        "generation": coordinator.generation,
        "controller": {"pid": controller_pid},
        "size": _size(coordinator),
        "nodes": [_node(n, observations.get(n.name)) for n in coordinator.nodes.values()],
        "snapshots": {
            "sealed": now.sealed,
            "protected": now.protected,
            "durable": now.durable,
            **counts,
            **_exposure(observations),
        },
        "volume": {
            "last": _volume(daemon.last for daemon in _daemons(coordinator, observations)),
            "total": _volume(daemon.total for daemon in _daemons(coordinator, observations)),
        },
        "durable": _durable(coordinator.durable),
        "incidents": coordinator.incidents_total,
        "message": coordinator.exit_message,
    }


def _size(coordinator: Coordinator) -> dict[str, Any]:
    """How many nodes hold ranks, between which numbers that may change, and how many are wanted besides.

    ``reason``: why some of these numbers will not do.
    """
    config, here = coordinator.config, sum(name is not None for name in coordinator.positions)
    reason = coordinator.size_reason or None
    return {"nodes": here, "min": config.least, "max": config.nodes, "spares": config.spares, "reason": reason}


def _snapshot_counts(observations: Observations) -> dict[str, int]:
    gates = [o.daemon for o in observations.values() if o.daemon and o.daemon.gate]
    return {"taken": sum(g.taken for g in gates), "skipped": sum(g.skipped for g in gates)}


def _durable(tier: DurableTier) -> dict[str, Any] | None:
    if tier.config is None:
        return None
    return {
        "url": tier.config.url,
        "newest": tier.newest,
        "writing": None if tier.writing is None else tier.writing.version,
        "failure": tier.failure or None,
    }


def _exposure(observations: Observations) -> dict[str, float]:
    gates = [o.daemon for o in observations.values() if o.daemon and o.daemon.gate]
    newest = max(gates, key=lambda gate: gate.generation, default=None)
    return {
        "exposed_seconds": newest.exposed_seconds if newest else 0.0,
        "exposed_last_seconds": newest.exposed_last_seconds if newest else 0.0,
    }


def _daemons(coordinator: Coordinator, observations: Observations) -> list[DaemonStatus]:
    """What the daemons said last, but for those of lost nodes."""
    nodes = coordinator.nodes.values()
    found = [observations.get(node.name) for node in nodes if node.state is not NodeState.LOST]
    return [seen.daemon for seen in found if seen is not None and seen.daemon is not None]


def _volume(volumes: Iterable[Volume]) -> dict[str, int]:
    """What snapshots cost, all nodes together."""
    total = Volume()
    for volume in volumes:
        total.add(volume)
    return msgspec.structs.asdict(total)


def _job_state(coordinator: Coordinator) -> str:
    if coordinator.phase is Phase.RUNNING and not all(r.stepped for r in coordinator.ranks.values()):
        return "starting"
    if coordinator.phase is Phase.ENDED:
        return "finished" if coordinator.exit_code == 0 else "failed"
    return str(coordinator.phase)


def _node(node: Node, seen: Observation | None) -> dict[str, Any]:
    here = seen is not None and node.state in (NodeState.IDLE, NodeState.CORDONED, NodeState.ACTIVE, NodeState.AWAY)
    agent_here = here and node.state is not NodeState.AWAY
    return {
        "name": node.name,
        "state": str(node.state),
        "position": node.position,
        "host": node.host,
        "hostname": node.hostname,
        "failure_domain": node.failure_domain,
        "agent_pid": seen.agent_pid if seen and agent_here else None,
        "daemon_pid": seen.daemon_pid if seen and here else None,
        "daemon_cpu_seconds": seen.daemon.cpu_seconds if seen and seen.daemon and here else None,
        "daemon_cpu_share": seen.cpu_share if seen and here else None,
        "ranks": [_rank(r) for r in seen.ranks] if seen and here else [],
    }


def nodes(coordinator: Coordinator, now_seconds: float) -> dict[str, Any]:
    """``ftrain nodes --json``."""
    quarantine = coordinator.quarantine
    found, machines = quarantine.strikes(now_seconds), quarantine.machines()
    return {
        "job": coordinator.config.work.job,
        "size": _size(coordinator),
        "isolations": {
            "last_hour": quarantine.isolations(now_seconds),
            "max": isolations_max(coordinator.config.nodes),
        },
        "nodes": [node(coordinator, n, found.get(machines[n.name], ())) for n in coordinator.nodes.values()],
    }


def node(coordinator: Coordinator, known: Node, found: Sequence[Strike]) -> dict[str, Any]:
    """One node, with what speaks against it."""
    nproc = coordinator.config.work.nproc_per_node
    first = None if known.position is None or known.gone else known.position * nproc
    cordon = known.cordon
    leaves = cordon is not None and cordon.leave is not Leave.AT_NEXT_FAULT and first is not None
    return {
        "name": known.name,
        "state": str(known.state),
        "position": known.position,
        "is_read": known.position is None and not known.gone and coordinator.reads(known.name),
        "ranks": [] if first is None else list(range(first, first + nproc)),
        "host": known.host,
        "hostname": known.hostname,
        "failures": [{"kind": strike.blame, "step": strike.step, "time": strike.time} for strike in found],
        "cordon": None
        if cordon is None
        else {
            "reason": cordon.reason,
            "since": cordon.since,
            "quarantined": cordon.quarantined,
            "leaves": leaves,
            "hindrance": (coordinator.quarantine.hindrance or coordinator.halting.why) if leaves else "",
            "returning": cordon.returning,
        },
        "health": msgspec.to_builtins(known.health),
    }


def flush(coordinator: Coordinator) -> dict[str, Any]:
    """``ftrain flush --json``: how far it is, or how it ended."""
    levels = coordinator.levels
    return {
        "job": coordinator.config.work.job,
        "wanted": coordinator.flushing.wanted,
        "step": coordinator.flushing.step,
        "sealed": levels.sealed,
        "protected": levels.protected,
        "durable": coordinator.durable.newest,
        "exit_code": coordinator.exit_code if coordinator.exit_message else None,
        "message": coordinator.exit_message,
    }


def _rank(rank: RankState) -> dict[str, Any]:
    return {
        "rank": rank.rank,
        "local_rank": rank.local_rank,
        "pid": rank.pid,
        "state": rank.state,
        "step": rank.step,
    }


def incidents(coordinator: Coordinator) -> dict[str, Any]:
    """``ftrain incidents --json``."""
    return {
        "job": coordinator.config.work.job,
        "incidents": [_incident(i) for i in coordinator.incidents],
    }


def _incident(incident: Incident) -> dict[str, Any]:
    cause = incident.cause or classify(incident.signs)
    timeline = incident.timeline
    return {
        "number": incident.number,
        "kind": cause.kind,
        "suspects": [{"rank": s.rank, "node": s.node, "pid": s.pid} for s in cause.suspects],
        "generation": incident.generation,
        "timeline": msgspec.to_builtins(timeline),
        "seconds": incident.seconds,
        "rung": incident.rung,
        "steps_lost": incident.steps_lost,
        "resumed_from": incident.resumed_from,
        "ranks": incident.ranks,
        "ranks_kept": incident.ranks_kept,
        "read_bytes": incident.read_bytes,
        "demoted": incident.demoted,
        "doubtful": incident.doubtful,
        "reason": cause.reason,
        "state": "closed" if incident.closed else "open",
    }


def incident(coordinator: Coordinator, number: int) -> dict[str, Any]:
    """``ftrain incidents NUMBER --json``: one incident, with all that is known of it.

    Raises:
        UsageError: there is none of that number, or it is not kept any more.
    """
    kept = {entry.number: entry for entry in coordinator.incidents}
    found = kept.get(number)
    if found is None:
        there = f"{min(kept)} to {max(kept)} are kept" if kept else "there was none so far"
        raise UsageError(f"no incident {number}: {there}")
    timeline = msgspec.to_builtins(found.timeline)
    return {
        "job": coordinator.config.work.job,
        "incident": {
            **_incident(found),
            "phases": phases(timeline),
            "signs": [_sign(sign) for sign in found.signs],
            "verdicts": [_verdict(verdict) for verdict in found.verdicts],
            "decision": found.decision or None,
            "certificate": None if found.certificate is None else msgspec.structs.asdict(found.certificate),
            "refused_certificate": None if found.refused is None else msgspec.structs.asdict(found.refused),
            "harmless": found.harmless,
            "over": found.over or None,
            "job_state": _job_state(coordinator),
        },
    }


def _sign(sign: Sign) -> dict[str, Any]:
    return {
        "kind": sign.kind,
        "node": sign.node,
        "rank": sign.rank,
        "pid": sign.pid,
        "time": sign.time,
        "text": describe(sign),
        "traceback": sign.failure.traceback if sign.failure else "",
        "last_lines": list(sign.last_lines),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(verdict),
        "waits": [msgspec.structs.asdict(wait) for wait in verdict.waits],
        "links": [msgspec.structs.asdict(link) for link in verdict.links],
    }


def snapshots(coordinator: Coordinator, observations: Observations, now_seconds: float) -> dict[str, Any]:
    """``ftrain snapshots --json``: each version, its level, and what every node holds of it."""
    now = levels(coordinator, observations)
    versions: dict[tuple[int, int, int], dict[str, Any]] = {}
    for name in coordinator.positions:
        seen = observations.get(name) if name is not None else None
        for held in seen.inventory.holdings if seen and seen.inventory else ():
            key = held.snapshot
            entry = versions.setdefault(
                (key.version, key.generation, key.slot),
                {"version": key.version, "generation": key.generation, "slot": key.slot, "nodes": []},
            )
            entry["nodes"].append(
                {
                    "node": name,
                    "position": held.position,
                    "data": held.data,
                    "parity": held.parity,
                    "data_bytes": held.data_bytes,
                    "parity_bytes": held.parity_bytes,
                    "damaged": bool(held.damage),
                    "age_seconds": _age(seen, key, now_seconds),
                }
            )
    for entry in versions.values():
        entry["level"] = _level(entry["version"], now)
    parity = coordinator.parity
    return {
        "job": coordinator.config.work.job,
        "levels": {"sealed": now.sealed, "protected": now.protected, "durable": now.durable},
        "parity": parity,
        "groups": [list(g) for g in coordinator.groups],
        "snapshots": [versions[key] for key in sorted(versions, reverse=True)],
    }


def _age(seen: Observation | None, snapshot: SnapshotId, now_seconds: float) -> float | None:
    since = seen.since.get(snapshot) if seen else None
    return None if since is None else max(0.0, now_seconds - since)


def _level(version: int, now: Levels) -> str:
    if version == now.durable:
        return "durable"
    for name in ("protected", "sealed"):
        reached = getattr(now, name)
        if reached is not None and version <= reached:
            return name
    return "writing"
