"""What a round found, as ``ftrain doctor --nodes --json`` prints it (docs/health.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ftrain.health.words import PairFigures
from ftrain_launcher.health.judge import Checkup, NodeHealth, State
from ftrain_launcher.job.membership import Node


def shown(job: str, checkup: Checkup, verdicts: Iterable[NodeHealth], nodes: Mapping[str, Node]) -> dict[str, Any]:
    """``ok``: no node is bad."""
    found = [_node(verdict, checkup, nodes[verdict.node]) for verdict in verdicts]
    return {
        "job": job,
        "ok": all(node["state"] != State.BAD.name.lower() for node in found),
        "training": checkup.training,
        "nodes": found,
        "links": [
            {
                "source": source,
                "destination": destination,
                "rtt_seconds": figure.rtt_seconds,
                "least_rtt_seconds": figure.least_rtt_seconds,
                "bytes_per_second": figure.bytes_per_second,
                "failure": figure.failure or None,
            }
            for (source, destination), figure in sorted(checkup.links.items())
        ],
        "all_reduces": [
            {
                "nodes": list(pair),
                "seconds": found.all_reduce_seconds if isinstance(found, PairFigures) else None,
                "failure": None if isinstance(found, PairFigures) else found,
            }
            for pair, found in sorted(checkup.pairs.items())
        ],
    }


def _node(verdict: NodeHealth, checkup: Checkup, node: Node) -> dict[str, Any]:
    figures = checkup.nodes[verdict.node]
    offset = checkup.clocks.get(verdict.node)
    return {
        "node": verdict.node,
        "position": node.position,
        "hostname": node.hostname,
        "state": verdict.state.name.lower(),
        "reasons": list(verdict.reasons),
        "figures": None if isinstance(figures, str) else msgspec.to_builtins(figures),
        "clock_offset_seconds": None if offset is None else -offset.seconds,
        "clock_error_seconds": None if offset is None else offset.error_seconds,
    }
