"""The node's page of control words, shared by its daemon and its workers."""

from __future__ import annotations

import struct
import time
from enum import IntEnum
from pathlib import Path

from ftrain_snapshot.arena import Mapping


class HaltMode(IntEnum):
    """What the node's agent wants of its ranks, when they commit a step (docs/operations.md, A planned stop)."""

    GO_ON = 0
    HOLD = 1
    """Wait: the step after which all ranks stop is being agreed on."""
    STAY = 2
    """Who has committed that step waits to be ended."""


_MODES = tuple(HaltMode)
"""Looked up at every commit: ten times as quick as the enum's call."""


class ControlPage:
    """The gate, written by the gate's daemon; the halt, by the agent; each lane's progress, by its worker.

    Words are aligned and written whole; the gate word of two is guarded by the order of writing (slot to -1,
    ticket, slot), and read ticket, slot, ticket. Of the halt, the step is written before the mode that it is for.
    """

    BYTES = 4096
    LANES_MAX = 48
    _TICKET, _SLOT, _PENDING, _FLOOR, _HALT_MODE, _HALT_STEP = 0, 1, 2, 3, 4, 5
    _PROGRESS, _ARRIVED, _STRIDE = 128, 130, 8

    def __init__(self, node_dir: str | Path, *, create: bool = False) -> None:
        path = Path(node_dir) / "control"
        fresh = create and (not path.exists() or path.stat().st_size != self.BYTES)
        if fresh:
            words = [0] * (self.BYTES // 8)
            words[self._SLOT] = words[self._PENDING] = words[self._HALT_STEP] = -1
            for lane in range(self.LANES_MAX):
                words[self._PROGRESS + self._STRIDE * lane] = words[self._ARRIVED + self._STRIDE * lane] = -1
            draft = path.with_name("control.new")
            draft.write_bytes(struct.pack(f"<{len(words)}q", *words))
            draft.chmod(0o600)
            draft.rename(path)
        self._mapping = Mapping(path)
        self._words = self._mapping.view.cast("q")
        self._times = self._mapping.view.cast("d")

    def gate(self) -> tuple[int, int]:
        """(ticket, slot); slot -1: closed."""
        while True:
            ticket, slot = self._words[self._TICKET], self._words[self._SLOT]
            if ticket == self._words[self._TICKET]:
                return ticket, slot

    def pending(self) -> tuple[int, int, int]:
        """(ticket, slot, floor) of the last opening, shown or not; slot -1: its snapshot has been seen."""
        return self._words[self._TICKET], self._words[self._PENDING], self._words[self._FLOOR]

    def open_gate(self, ticket: int, slot: int, floor: int = -1) -> None:
        """Let rank 0 take ``ticket`` for ``slot``; ``floor`` is a note for the gate's own restart."""
        self._words[self._SLOT] = -1
        self._words[self._TICKET] = ticket
        self._words[self._PENDING] = -1
        self._words[self._FLOOR] = floor
        self._words[self._PENDING] = slot
        self._words[self._SLOT] = slot

    def close_gate(self, *, spent: bool = False) -> None:
        """Nobody may take a ticket. ``spent``: the last one has been used, or is void."""
        self._words[self._SLOT] = -1
        if spent:
            self._words[self._PENDING] = -1

    def halt(self) -> tuple[HaltMode, int]:
        """(mode, the step after which all ranks stop, as it was agreed on last); step -1: none was."""
        return _MODES[self._words[self._HALT_MODE]], self._words[self._HALT_STEP]

    def set_halt(self, mode: HaltMode, step: int | None = None) -> None:
        """Tell the ranks here; ``step`` None: as it was."""
        if step is not None:
            self._words[self._HALT_STEP] = step
        self._words[self._HALT_MODE] = mode

    def arrived(self, lane: int) -> int:
        """The last step that a lane has begun to commit; -1: none."""
        return self._words[self._ARRIVED + self._STRIDE * lane]

    def arrive(self, lane: int, step: int) -> None:
        """The lane begins to commit ``step``: it looks at the halt only after this."""
        self._words[self._ARRIVED + self._STRIDE * lane] = step

    def progress(self, lane: int) -> tuple[int, float]:
        """(last committed step, time.time() of its commit) of a lane; step -1: none."""
        at = self._PROGRESS + self._STRIDE * lane
        return self._words[at], self._times[at + 1]

    def set_progress(self, lane: int, step: int) -> None:
        """The lane has committed ``step`` now."""
        at = self._PROGRESS + self._STRIDE * lane
        self._times[at + 1] = time.time()
        self._words[at] = step

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._times.release()
        self._mapping.close()
