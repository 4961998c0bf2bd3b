"""Questions to agents that they answer by number: any number at once, each bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from ftrain_launcher.control.outbox import Outbox
from ftrain_launcher.questions import Question, Reply

_LOOK_SECONDS = 0.5

R = TypeVar("R", bound=Reply)


class Requests:
    """The controller's questions under way."""

    def __init__(self, outboxes: Mapping[str, Outbox]) -> None:
        self._outboxes = outboxes
        self._waiting: dict[tuple[int, str], asyncio.Future[Reply]] = {}
        self._number = 0

    def take(self, reply: Reply) -> None:
        """An agent answers; of no matter if nobody waits for it any more."""
        waiting = self._waiting.get((reply.request, reply.node))
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def ask(
        self, node: str, question: Callable[[int], Question], kind: type[R], timeout_seconds: float
    ) -> R | str:
        """Ask one agent; ``question`` makes the message from its number. The answer, or why there is none."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            return "its agent is not connected"
        self._number += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Reply] = loop.create_future()
        key = (self._number, node)
        self._waiting[key] = answer
        outbox.put(question(self._number))
        deadline = loop.time() + timeout_seconds
        try:
            while self._outboxes.get(node) is outbox and (left := deadline - loop.time()) > 0:
                done, _ = await asyncio.wait([answer], timeout=min(_LOOK_SECONDS, left))
                if done:
                    reply = answer.result()
                    return reply if isinstance(reply, kind) else "it answered something else"
        finally:
            del self._waiting[key]
        return "it did not answer"
