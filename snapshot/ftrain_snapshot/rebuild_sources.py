"""What one rebuilding knows of the members whose chunks it asks for: what each lacks, and how far each is believed.

Who sends damaged bytes is asked again, since they may have been damaged on the way: a few times, and then it is left
out there. Who does not answer is not asked for a while. Pure: how long a while is, the caller says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from ftrain_snapshot.inventory import Damage

STRIKES_MAX = 8
"""How often one chunk may come damaged from its source before that is left out there."""


class Sources:
    """The members of a group, as sources of one member's lost chunks."""

    def __init__(self) -> None:
        self._bad: dict[int, tuple[Damage, ...]] = {}
        self._distrusted: dict[int, list[Damage]] = {}
        self._silent: set[int] = set()
        self._strikes: Counter[tuple[int, int, int, int]] = Counter()

    def hear(self, position: int, bad: tuple[Damage, ...]) -> None:
        """A member says what it lacks."""
        self._bad[position] = bad
        self.forgive(position)

    def forgive(self, position: int) -> None:
        """It is connected anew, or has said something new: ask it again."""
        self._distrusted.pop(position, None)
        self._silent.discard(position)
        self._strikes = Counter({k: n for k, n in self._strikes.items() if k[0] != position})

    def silence(self, position: int) -> None:
        """It did not answer in time."""
        self._silent.add(position)

    def ask_again(self, position: int) -> None:
        """It has been left alone for long enough."""
        self._silent.discard(position)

    def strike(self, position: int, lane: int, rotation: int, stripe: int) -> bool:
        """Its chunk came damaged, or led to wrong bytes; whether it is left out there from now on."""
        key = (position, lane, rotation, stripe)
        self._strikes[key] += 1
        if self._strikes[key] >= STRIKES_MAX:
            self.distrust(position, Damage(lane, rotation, stripe, stripe + 1))
        return self._strikes[key] == STRIKES_MAX

    def distrust(self, position: int, where: Damage) -> None:
        """It cannot send these."""
        self._distrusted.setdefault(position, []).append(where)

    def bad(self) -> dict[int, tuple[Damage, ...]]:
        """By position what a member lacks, as it said or as was found."""
        told = {*self._bad, *self._distrusted}
        return {p: (*self._bad.get(p, ()), *self._distrusted.get(p, ())) for p in told}

    def answering(self, able: Collection[int]) -> set[int]:
        """Those of ``able`` that can be asked now."""
        return set(able) - self._silent
