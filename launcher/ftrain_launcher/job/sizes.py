"""Pure: how many nodes a job may have: MIN to MAX, but for the numbers that the script has no mesh or no samples for.

Nobody knows beforehand what a script does with a number of ranks: it may have a mesh for each. So a number is struck
off once `ctx.mesh` has said in the workers that it does not fit, or a sampler that its global batch has too few
samples, and with it all others that cannot either. Nodes that are left over then are spares. Where the ranks capture
what no other number of them can resume, theirs alone is left: it is a job of one size until the newest snapshot that is
safe can be resumed by others, too.
"""

from __future__ import annotations

from ftrain.link import Misfit


class Sizes:
    """One job's; the workers' words are journaled, so that each controller comes to the same."""

    def __init__(self, least: int, most: int) -> None:
        self._fitting = list(range(least, most + 1))
        self._misfits: list[str] = []
        self._kept = 0
        self._kept_for = ""

    @property
    def reason(self) -> str:
        """What strikes off some of them, in words; empty: nothing does."""
        return "; ".join([*self._misfits, *([self._kept_for] if self.is_kept else [])])

    @property
    def is_kept(self) -> bool:
        """The number does not change: positions are as in a job of one size."""
        return self._kept > 0

    @property
    def least(self) -> int:
        """With so many nodes the job can go on."""
        return self._usable[0]

    def at_most(self, nodes: int) -> int:
        """How many of so many nodes it can use; 0: they are too few."""
        return max((size for size in self._usable if size <= nodes), default=0)

    def strike_off(self, misfit: Misfit, nproc_per_node: int) -> bool:
        """Numbers of nodes that this does not fit are not formed any more; False: none would be left."""
        fitting = [nodes for nodes in self._usable if misfit.is_met_by(nodes * nproc_per_node)]
        if not fitting:
            return False
        if misfit.reason not in self._misfits:
            self._misfits.append(misfit.reason)
        self._fitting = [nodes for nodes in self._fitting if misfit.is_met_by(nodes * nproc_per_node)]
        return True

    def keep(self, nodes: int, reason: str) -> bool:
        """No other number is formed until it is set free; False: that was so before."""
        if self.is_kept:
            return False
        self._kept, self._kept_for = nodes, reason
        return True

    def set_free(self) -> None:
        """Other numbers are formed again, but for those that were struck off."""
        self._kept = 0

    @property
    def _usable(self) -> list[int]:
        return [self._kept] if self.is_kept else self._fitting
