"""Pure: what operators see of a job, built from the coordinator and from what the agents last said.

The shapes are documented in docs/operations.md and kept stable: scripts depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ftrain_launcher.causes import classify
from ftrain_launcher.coordinator import Coordinator
from ftrain_launcher.incidents import Incident
from ftrain_launcher.membership import Node, NodeState, Phase
from ftrain_launcher.messages import RankState
from ftrain_snapshot.messages import DaemonStatus, Inventory, Levels


class Observation(msgspec.Struct, kw_only=True):
    """What an agent last said of its node."""

    agent_pid: int | None = None
    daemon_pid: int | None = None
    generation: int = 0
    ranks: tuple[RankState, ...] = ()
    daemon: DaemonStatus | None = None
    inventory: Inventory | None = None
    seen: float = 0.0


Observations = Mapping[str, Observation]


def levels(coordinator: Coordinator, observations: Observations) -> Levels:
    """The job's levels: what the gate of the newest formed generation said last, or what it started from."""
    for observation in observations.values():
        status = observation.daemon
        if status and status.gate and status.generation == coordinator.formed and status.levels.sealed is not None:
            return status.levels
    return coordinator.levels


def status(coordinator: Coordinator, observations: Observations, controller_pid: int) -> dict[str, Any]:
    """``ftrain status --json``."""
    now = levels(coordinator, observations)
    counts = _snapshot_counts(observations)
    return {
        "job": coordinator.config.work.job,
        "state": _job_state(coordinator),
        "generation": coordinator.generation,
        "controller": {"pid": controller_pid},
        "nodes": [_node(n, observations.get(n.name)) for n in coordinator.nodes.values()],
        "snapshots": {
            "sealed": now.sealed,
            "protected": now.protected,
            "durable": now.durable,
            **counts,
        },
        "incidents": coordinator.incidents_total,
        "message": coordinator.exit_message,
    }


def _snapshot_counts(observations: Observations) -> dict[str, int]:
    gates = [o.daemon for o in observations.values() if o.daemon and o.daemon.gate]
    return {"taken": sum(g.taken for g in gates), "skipped": sum(g.skipped for g in gates)}


def _job_state(coordinator: Coordinator) -> str:
    if coordinator.phase is Phase.RUNNING and not all(r.stepped for r in coordinator.ranks.values()):
        return "starting"
    if coordinator.phase is Phase.ENDED:
        return "finished" if coordinator.exit_code == 0 else "failed"
    return str(coordinator.phase)


def _node(node: Node, seen: Observation | None) -> dict[str, Any]:
    here = seen is not None and node.state in (NodeState.IDLE, NodeState.ACTIVE, NodeState.AWAY)
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
        "ranks": [_rank(r) for r in seen.ranks] if seen and here else [],
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
        "steps_lost": incident.steps_lost,
        "resumed_from": incident.resumed_from,
        "reason": cause.reason,
        "state": "closed" if incident.closed else "open",
    }


def snapshots(coordinator: Coordinator, observations: Observations) -> dict[str, Any]:
    """``ftrain snapshots --json``: each version, its level, and what every node holds of it."""
    now = levels(coordinator, observations)
    versions: dict[tuple[int, int, int], dict[str, Any]] = {}
    for position, name in enumerate(coordinator.positions):
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
                    "position": position,
                    "data": held.data,
                    "parity": held.parity,
                    "data_bytes": held.data_bytes,
                    "parity_bytes": held.parity_bytes,
                }
            )
    for entry in versions.values():
        entry["level"] = _level(entry["version"], now)
    parity = coordinator.config.work.parity
    return {
        "job": coordinator.config.work.job,
        "levels": {"sealed": now.sealed, "protected": now.protected, "durable": now.durable},
        "parity": parity,
        "groups": [list(g) for g in coordinator.groups],
        "snapshots": [versions[key] for key in sorted(versions, reverse=True)],
    }


def _level(version: int, now: Levels) -> str:
    for name in ("durable", "protected", "sealed"):
        reached = getattr(now, name)
        if reached is not None and version <= reached:
            return name
    return "writing"
