"""What the ranks of scripts/bench/recovery.py write down, and what is read out of it, for all sides alike.

A rank notes each step that it has done, and when it was started, again in a new process or not (recovery_worker.py).
A *new step* is one that no rank had done before the fault, done by ranks that were started again; what they do first,
but was done before, is *done again*.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

WARM_STEPS = 10
RECOVERY_TIMEOUT_SECONDS = 600.0
"""Only a hang takes so long, on a busy machine, too: there Ray needs minutes to start."""
POLL_SECONDS = 0.02


class NotBegun(RuntimeError):
    """The job ended by itself before it was warm: nothing was measured, and it may be started again."""


class Line(NamedTuple):
    """A rank's note of a finished step."""

    step: int
    time: float
    pid: int
    started: int
    """When the rank was started, in nanoseconds; only compared with others of this rank."""


class Recovery(NamedTuple):
    """How one fault went."""

    first_step: float
    """When the last rank had done its first new step, in Unix seconds."""
    earliest_step: float
    """When the first one had."""
    done_again: int
    """Steps that had been done before."""
    without: int
    """New steps that some ranks did without the last one to come back."""


class Notes:
    """What the ranks wrote down, read from outside."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder, self.ranks = folder, ranks
        self._begun = False

    def of(self, rank: int) -> list[Line]:
        """The rank's finished steps, oldest first; of all its processes."""
        path = self.folder / f"rank-{rank}"
        text = path.read_text() if path.exists() else ""
        fields = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
        return [Line(int(step), float(when), int(pid), int(started)) for step, when, pid, started in fields]

    def last(self) -> dict[int, Line]:
        """Each rank's newest note."""
        return {rank: self.of(rank)[-1] for rank in range(self.ranks)}

    def wait_warm(self, alive: Callable[[], bool]) -> None:
        """Wait until every rank has done WARM_STEPS steps since it was started.

        Raises:
            NotBegun: the job has ended, and was never warm.
            RuntimeError: it does not get warm, or not again.
        """
        try:
            wait_for(
                "warm", alive, lambda: all(self._steps_of_last_start(rank) >= WARM_STEPS for rank in range(self.ranks))
            )
        except RuntimeError as error:
            if self._begun or alive():
                raise
            raise NotBegun("the job ended before it was warm") from error
        self._begun = True

    def _steps_of_last_start(self, rank: int) -> int:
        lines = self.of(rank)
        return sum(line.started == lines[-1].started for line in lines)

    def wait_recovered(self, old: dict[int, Line], alive: Callable[[], bool], ranks: int | None = None) -> Recovery:
        """Wait until so many ranks (as many as before, if that is left open) have done a new step."""
        found: list[Recovery] = []

        def all_there() -> bool:
            now = {rank: self.of(rank) for rank in old}
            done = max(line.step for rank, lines in now.items() for line in lines if line.started == old[rank].started)
            fresh = {rank: [line for line in now[rank] if line.started > old[rank].started] for rank in old}
            firsts = [new[0] for lines in fresh.values() if (new := [line for line in lines if line.step > done])]
            if len(firsts) < (ranks or self.ranks):
                return False
            again = {line.step for lines in fresh.values() for line in lines if line.step <= done}
            last = max(firsts, key=lambda line: line.time)
            found.append(Recovery(last.time, min(line.time for line in firsts), len(again), last.step - done - 1))
            return True

        wait_for("recovered", alive, all_there)
        return found[0]


def wait_for(what: str, alive: Callable[[], bool], condition: Callable[[], bool]) -> None:
    """Wait until the condition holds.

    Raises:
        RuntimeError: it does not, or the job has ended.
    """
    deadline = time.monotonic() + RECOVERY_TIMEOUT_SECONDS
    while not condition():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the job did not get {what}")
        time.sleep(POLL_SECONDS)
