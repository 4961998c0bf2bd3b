"""The controller's part in ``ftrain snapshots --verify``: ask all agents at once, gather what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ftrain_launcher.questions import Verified, Verify
from ftrain_launcher.requests import Requests
from ftrain_snapshot.messages import Damage
from ftrain_snapshot.placement import Group, Groups, group_of

ANSWER_SECONDS_MAX = 570.0


async def verify_all(requests: Requests, nodes: Iterable[str]) -> list[Verified]:
    """Have these nodes check what they store; one answer each, in their order, within ``ANSWER_SECONDS_MAX``."""

    async def ask(node: str) -> Verified:
        answer = await requests.ask(node, Verify, Verified, ANSWER_SECONDS_MAX)
        return Verified(node=node, request=0, failure=answer) if isinstance(answer, str) else answer

    return list(await asyncio.gather(*map(ask, nodes)))


def shown(job: str, answers: Iterable[Verified], groups: Groups, parity: int) -> dict[str, Any]:
    """``ftrain snapshots --verify --json``; ``sound``: nothing is lost, and every node was checked."""
    nodes = [_node(answer, groups, parity) for answer in answers]
    sound = all(node["failure"] is None and node["damaged"] == node["repaired"] for node in nodes)
    return {"job": job, "sound": sound, "nodes": nodes}


def _node(answer: Verified, groups: Groups, parity: int) -> dict[str, Any]:
    lanes = [
        {
            "version": lane.snapshot.version,
            "generation": lane.snapshot.generation,
            "lane": lane.lane,
            "checked": lane.checked,
            "damaged": lane.damaged,
            "repaired": lane.repaired,
            "damage": [_damage(d, lane.position, group_of(lane.position, groups, parity)) for d in lane.damage],
        }
        for lane in answer.lanes
    ]
    return {
        "node": answer.node,
        "failure": answer.failure or None,
        **{word: sum(lane[word] for lane in lanes) for word in ("checked", "damaged", "repaired")},
        "lanes": lanes,
    }


def _damage(damage: Damage, position: int, group: Group) -> dict[str, Any]:
    """``chunk``: the number of the first, of data; the next one of the range is as many further as a stripe is wide."""
    rotations = group.data_rotations(position)
    is_data = damage.rotation in rotations
    return {
        "kind": "data" if is_data else "parity",
        "rotation": damage.rotation,
        "first_stripe": damage.first,
        "stop_stripe": damage.stop,
        "chunk": damage.first * len(rotations) + rotations.index(damage.rotation) if is_data else None,
    }
