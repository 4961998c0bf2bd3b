"""Pure: how many nodes a job may have: MIN to MAX, but for the numbers that the script has no mesh or no samples for.

Nobody knows beforehand what a script does with a number of ranks: it may have a mesh for each. So a number is struck
off once `ctx.mesh` has said in the workers that it does not fit, or a sampler that its global batch has too few
samples, and with it all others that cannot either. Nodes that are left over then are spares. Where the ranks capture
what no other number of them can resume, theirs alone is left: it is a job of one size then.
"""

from __future__ import annotations

from ftrain.link import Misfit


class Sizes:
    """One job's; the workers' words are journaled, so that each controller comes to the same."""

    def __init__(self, least: int, most: int) -> None:
        self.reason = ""
        """What strikes off some of them, in words; empty: nothing does."""
        self.is_kept = False
        """The number never changes again: positions are as in a job of one size."""
        self._fitting = list(range(least, most + 1))

    @property
    def least(self) -> int:
        """With so many nodes the job can go on."""
        return self._fitting[0]

    def at_most(self, nodes: int) -> int:
        """How many of so many nodes it can use; 0: they are too few."""
        return max((size for size in self._fitting if size <= nodes), default=0)

    def strike_off(self, misfit: Misfit, nproc_per_node: int) -> bool:
        """Numbers of nodes that this does not fit are not formed any more; False: none would be left."""
        fitting = [nodes for nodes in self._fitting if misfit.is_met_by(nodes * nproc_per_node)]
        if not fitting:
            return False
        self._note(misfit.reason)
        self._fitting = fitting
        return True

    def keep(self, nodes: int, reason: str) -> bool:
        """No other number is formed any more; False: that was so before."""
        if self.is_kept:
            return False
        self._note(reason)
        self._fitting, self.is_kept = [nodes], True
        return True

    def _note(self, reason: str) -> None:
        if reason not in self.reason:
            self.reason += f"; {reason}" if self.reason else reason
