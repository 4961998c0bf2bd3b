"""Pure: which workers go on in the same processes when their generation ends, and who gets which place in the next.

A worker that can rejoin (ftrain/rejoin.py) is asked to leave and waits for its next place; all others are killed. Of
those that wait, a lane's own process comes first, for what it has on a device is its lane's; then a standby. What is
left is for the zygote.
"""

from __future__ import annotations

from dataclasses import dataclass

_STOPPED = ("T", "t")
"""Letters of /proc for a process that runs none of its threads."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A worker as its agent sees it at the end of its generation."""

    alive: bool
    state: str
    """The letter of its process's state."""
    finished: bool = False
    """Its training function has returned, and cannot be run again."""
    fails: bool = False
    """The function raised what no lost peer explains: the process ends."""
    suspected: bool = False
    """The detector has named its rank: what ails it may be in the process."""


def can_stay(worker: Seen) -> bool:
    """Whether it is worth the grace time to ask this one, which listens, to leave."""
    return worker.alive and not (worker.finished or worker.fails or worker.suspected or worker.state in _STOPPED)


@dataclass(frozen=True)
class Waiting:
    """A process that waits for a place."""

    id: str
    """The zygote's name of it."""
    pid: int
    argv: tuple[str, ...]
    lane: int | None
    """The one that it had; None: a standby."""


class WaitingRoom:
    """Those of one node."""

    def __init__(self) -> None:
        self._all: dict[str, Waiting] = {}

    @property
    def ids(self) -> set[str]:
        """The zygote's names of all of them."""
        return set(self._all)

    @property
    def standbys(self) -> int:
        """How many of them had no place yet."""
        return sum(one.lane is None for one in self._all.values())

    @property
    def stayed(self) -> int:
        """How many of them had one."""
        return len(self._all) - self.standbys

    def add(self, one: Waiting) -> None:
        """It waits from now on."""
        self._all[one.id] = one

    def remove(self, id: str) -> None:
        """It has ended, if it was here."""
        self._all.pop(id, None)

    def take(self, lane: int, argv: tuple[str, ...]) -> Waiting | None:
        """The process for a lane; None: there is none for it. A standby was started with some lane's arguments."""
        own = [one for one in self._all.values() if one.lane == lane]
        standbys = [one for one in self._all.values() if one.lane is None and one.argv == argv]
        for one in (*own, *standbys):
            del self._all[one.id]
            return one
        return None
