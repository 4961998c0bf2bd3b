"""A node's part in a planned stop: what its ranks read in the control page, and what the controller hears of it.

See `ftrain.halt` for the protocol, and `halting` for who decides.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from ftrain_launcher.from_agent import Held
from ftrain_launcher.to_agent import Form, GoOn, HaltAfter, Hold
from ftrain_snapshot.control import ControlPage, HaltMode

SETTLE_SECONDS = 0.001
"""Far longer than a word written stays in a processor's store buffer: who has not seen it by then, is seen."""


class NodeHalt:
    """Of one node; its daemon has made the page."""

    def __init__(self, node: str, node_folder: Path) -> None:
        self._node = node
        self._page = ControlPage(node_folder)

    async def hold(self, message: Hold, form: Form) -> Held | None:
        """Have the ranks wait at their next commit; the answer, or None: one has yet to come to an older halt's step.

        First the word, then the look: a rank that has not seen the word had written before which step it commits.
        """
        lanes = range(form.work.nproc_per_node)
        _, last = self._page.halt()
        if any(self._page.arrived(lane) <= last for lane in lanes):
            return None
        self._page.set_halt(HaltMode.HOLD)
        await asyncio.sleep(SETTLE_SECONDS)  # ranks past the word as it was written: shared memory wakes nobody
        step = max(self._page.arrived(lane) for lane in lanes)
        return Held(self._node, message.generation, message.attempt, step)

    def halt_after(self, message: HaltAfter) -> None:
        """The step is agreed on."""
        self._page.set_halt(HaltMode.STAY, message.step)

    def go_on(self, message: GoOn) -> None:
        """Nobody waits; who has yet to come to an agreed step captures it all the same, as the others did."""
        self._page.set_halt(HaltMode.GO_ON)

    def stays(self, step: int) -> bool:
        """Ranks that have committed it wait."""
        return self._page.halt() == (HaltMode.STAY, step)

    def clear(self) -> None:
        """No worker runs here; the next ones begin anew."""
        self._page.set_halt(HaltMode.GO_ON, -1)

    def close(self) -> None:
        """Let go of the page."""
        self._page.close()
