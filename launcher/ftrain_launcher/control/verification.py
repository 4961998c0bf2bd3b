"""The controller's part in ``ftrain snapshots --verify``: ask all agents at once, gather what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ftrain_launcher.control.requests import Requests
from ftrain_launcher.job.worlds import Worlds
from ftrain_launcher.questions import Verified, Verify
from ftrain_snapshot.inventory import Damage
from ftrain_snapshot.messages import LaneReport
from ftrain_snapshot.placement import Group, group_of

ANSWER_SECONDS_MAX = 570.0


async def verify_all(requests: Requests, nodes: Iterable[str]) -> list[Verified]:
    """Have these nodes check what they store; one answer each, in their order, within ``ANSWER_SECONDS_MAX``."""

    async def ask(node: str) -> Verified:
        answer = await requests.ask(node, Verify, Verified, ANSWER_SECONDS_MAX)
        return Verified(node=node, request=0, failure=answer) if isinstance(answer, str) else answer

    return list(await asyncio.gather(*map(ask, nodes)))


def shown(job: str, answers: Iterable[Verified], worlds: Worlds) -> dict[str, Any]:
    """``ftrain snapshots --verify --json``; ``sound``: nothing is lost, and every node was checked."""
    nodes = [_node(answer, worlds) for answer in answers]
    sound = all(node["failure"] is None and node["damaged"] == node["repaired"] for node in nodes)
    return {"job": job, "sound": sound, "nodes": nodes}


def _node(answer: Verified, worlds: Worlds) -> dict[str, Any]:
    lanes = [
        {
            "version": lane.snapshot.version,
            "generation": lane.snapshot.generation,
            "lane": lane.lane,
            "checked": lane.checked,
            "damaged": lane.damaged,
            "repaired": lane.repaired,
            "damage": _damages(lane, worlds),
        }
        for lane in answer.lanes
    ]
    return {
        "node": answer.node,
        "failure": answer.failure or None,
        **{word: sum(lane[word] for lane in lanes) for word in ("checked", "damaged", "repaired")},
        "lanes": lanes,
    }


def _damages(lane: LaneReport, worlds: Worlds) -> list[dict[str, Any]]:
    """None, if nobody knows any more how that snapshot was coded."""
    world = worlds.of(lane.snapshot)
    group = group_of(lane.position, world.groups, world.parity) if world is not None else None
    return [_damage(damage, lane.position, group) for damage in lane.damage] if group is not None else []


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
