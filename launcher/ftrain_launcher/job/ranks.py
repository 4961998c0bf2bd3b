"""The ranks of one generation, and how far each has come: restored, first step made, finished."""

from __future__ import annotations

from collections.abc import Sequence

from ftrain_launcher.job.membership import Rank


class Ranks:
    """``nproc_per_node`` ranks on each of ``nodes``, which are given in order of position; counted, not searched."""

    def __init__(self, nodes: Sequence[str] = (), nproc_per_node: int = 1) -> None:
        self.nodes = tuple(nodes)
        self.by_number = {
            position * nproc_per_node + lane: Rank(rank=position * nproc_per_node + lane, node=node)
            for position, node in enumerate(nodes)
            for lane in range(nproc_per_node)
        }
        self.restored_at: float | None = None
        """When the last rank so far had its state back."""
        self.stepped_at: float | None = None
        """When the last rank so far made its first step."""
        self.kept = self.read_bytes = 0
        """How many ranks kept live tensors; what all read."""
        self._nproc = nproc_per_node
        self._unrestored = self._unsettled = self._unfinished = len(self.by_number)

    def of(self, position: int) -> list[Rank]:
        """The ranks of the node at a position."""
        if position >= len(self.nodes):
            return []
        return [self.by_number[position * self._nproc + lane] for lane in range(self._nproc)]

    def restore(self, rank: Rank, time: float, read_bytes: int = 0, kept_bytes: int = 0) -> bool:
        """A rank has its state back, of which it read so much; True: it was the last that had not."""
        if rank.restored:
            return False
        rank.restored = True
        self.read_bytes += read_bytes
        self.kept += kept_bytes > 0
        self._unrestored -= 1
        self.restored_at = max(self.restored_at or time, time)
        return not self._unrestored

    def step(self, rank: Rank, time: float) -> bool:
        """A rank made its first step; True: it was the last that had not."""
        if rank.stepped:
            return False
        self.stepped_at = max(self.stepped_at or time, time)
        return self._settle(rank)

    def finish(self, rank: Rank) -> bool:
        """A rank is done, perhaps without having had a step to make; True: no rank is left without a first step."""
        if rank.finished:
            return False
        rank.finished = True
        self._unfinished -= 1
        return not rank.stepped and self._settle(rank)

    def _settle(self, rank: Rank) -> bool:
        rank.stepped = True
        self._unsettled -= 1
        return not self._unsettled

    @property
    def in_training(self) -> bool:
        """All have made a step, and none is done."""
        return bool(self.by_number) and not self._unsettled and self._unfinished == len(self.by_number)

    @property
    def all_finished(self) -> bool:
        """Nothing is left to do."""
        return not self._unfinished
