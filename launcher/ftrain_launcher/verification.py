"""The controller's part in ``ftrain snapshots --verify``: ask all agents at once, gather what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ftrain_launcher.messages import Verified, Verify
from ftrain_launcher.outbox import Outbox
from ftrain_snapshot.messages import Damage
from ftrain_snapshot.placement import Group, Groups, group_of

ANSWER_SECONDS_MAX = 570.0
_LOOK_SECONDS = 0.5


class Verification:
    """Requests under way; each has a number."""

    def __init__(self, outboxes: Mapping[str, Outbox]) -> None:
        self._outboxes = outboxes
        self._answers: dict[tuple[int, str], asyncio.Future[Verified]] = {}
        self._number = 0

    def take(self, answer: Verified) -> None:
        """An agent answers; of no matter if nobody waits for it any more."""
        waiting = self._answers.get((answer.request, answer.node))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def run(self, nodes: Iterable[str]) -> list[Verified]:
        """Have these nodes check what they store; one answer each, in their order, within ``ANSWER_SECONDS_MAX``."""
        self._number += 1
        return list(await asyncio.gather(*(self._ask(node, self._number) for node in nodes)))

    async def _ask(self, node: str, number: int) -> Verified:
        outbox = self._outboxes.get(node)
        if outbox is None:
            return Verified(node=node, request=number, failure="its agent is not connected")
        answer: asyncio.Future[Verified] = asyncio.get_running_loop().create_future()
        self._answers[number, node] = answer
        outbox.put(Verify(number))
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS_MAX
        try:
            while self._outboxes.get(node) is outbox and asyncio.get_running_loop().time() < deadline:
                done, _ = await asyncio.wait([answer], timeout=_LOOK_SECONDS)
                if done:
                    return answer.result()
        finally:
            del self._answers[number, node]
        return Verified(node=node, request=number, failure="it did not answer")


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
