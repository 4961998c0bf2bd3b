"""Pure: how long ranks that are given more time (`patience.py`) stay outside of all operations while others wait for
them, and whether they go on by themselves.

A stall is measured by the rank's own reports: one from within it says how long it has lasted, the next one when the
rank has moved. It counts if it would have been called a hang by what the rank had been given when it was. One that has
just been called may end as well, while its rank is looked at or the job is stopped for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from ftrain_launcher.detect.hang import Judge, waiting_at
from ftrain_launcher.detect.patience import Patience, Waiting, WentOn
from ftrain_launcher.detect.waits import Standing

WATCH_SECONDS = 0.2
"""An operation that has lasted for so long is looked at, while somebody is given more time."""
_WAITING_MAX = 8


@dataclass(slots=True)
class _Spell:
    """A rank was seen to be waited for."""

    seen: int
    """The step that it had marked."""
    at: float
    waited_seconds: float
    """By those who wait for it."""
    pause_seconds: float
    """For how much longer it may be outside, since they were themselves."""
    idle_seconds: float
    """How long it had not moved, as of ``taken``."""
    taken: float
    waiting: tuple[Waiting, ...]


class Spells:
    """One generation's."""

    def __init__(self, generation: int, patience: Patience) -> None:
        self._generation, self._patience = generation, patience
        self._open: dict[int, _Spell] = {}
        self._called: dict[int, float] = {}
        """By rank: called hung in this generation, and what it had been given; endless once it has moved."""
        self._ended: list[WentOn] = []

    def watches(self, standings: Mapping[int, Standing]) -> list[int]:
        """Those who are given more time where they are, or have been called."""
        ranks = [rank for rank in self._patience.called_before() if rank in standings]
        more = [rank for rank in ranks if self._patience.gives_more(rank, standings[rank].record.step)]
        return [*more, *(rank for rank, seconds in self._called.items() if seconds < inf)]

    def call(self, judge: Judge, ranks: Iterable[int], allowed_seconds: float) -> None:
        """These are called hung."""
        self._called.update(dict.fromkeys(ranks, allowed_seconds))
        self.look(judge)

    def have_gone_on(self, ranks: Iterable[int]) -> bool:
        """Whether all of these were called hung, and have moved since."""
        return all(self._called.get(rank) == inf for rank in ranks)

    def look(self, judge: Judge) -> None:
        """Others may wait for one of them."""
        standings, accused = judge.graph.standings, judge.graph.accused
        for rank in self.watches(standings) if accused else ():
            standing = standings[rank]
            if rank not in accused or standing.halted:
                continue
            gates = sorted(accused[rank], key=judge.waited, reverse=True)
            waited, pause = judge.waited(gates[0]), judge.pause(gates[0], standing)
            waiting = tuple(dict.fromkeys(map(waiting_at, gates)))[:_WAITING_MAX]
            idle, seen = standing.idle_seconds, standing.record.step
            self._open[rank] = _Spell(seen, judge.now, waited, pause, idle, standing.taken, waiting)

    def take(self, standing: Standing) -> None:
        """A rank is so now."""
        rank = standing.record.rank
        spell = self._open.get(rank)
        if spell is None or standing.idle_seconds >= spell.idle_seconds:
            return
        del self._open[rank]
        moved = standing.taken - standing.idle_seconds
        waited = spell.waited_seconds + max(0.0, moved - spell.at)
        idle = spell.idle_seconds + max(0.0, moved - spell.taken)
        fault = self._patience.fault_seconds(rank, spell.seen, spell.waiting[0], self._called.get(rank, inf))
        if rank in self._called:
            self._called[rank] = inf
        if waited >= fault and idle >= fault + spell.pause_seconds:
            step, in_first_step = self._patience.step(spell.seen), spell.seen < 0
            self._ended.append(WentOn(self._generation, rank, step, idle, spell.waiting, in_first_step))

    def ended(self) -> list[WentOn]:
        """Those that ended as no faults, once."""
        ended, self._ended = self._ended, []
        return ended
