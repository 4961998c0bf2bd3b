"""Who computes which micro-batch: pure arithmetic, the same on every rank.

Numbers are dealt in runs, near-equal in length, or in turn (rank 0 takes 0, W, 2 W, ...). Runs let a rank add up most
of its own gradients before anything is sent; in turn, each round is a run of numbers, which suits FSDP2, where all
ranks go through each micro-batch together.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any


def is_whole(number: Any) -> bool:
    """Whether it is a whole number, of Python's or NumPy's."""
    return isinstance(number, Integral)


@dataclass(frozen=True)
class Cut:
    """A global batch cut into micro-batches; only the last may be smaller."""

    global_batch: int
    """Samples of a step."""
    size: int
    """Samples of a micro-batch."""

    def __post_init__(self) -> None:
        if not is_whole(self.size) or not 1 <= self.size <= self.global_batch:
            raise ValueError(f"micro_batch={self.size} must be a whole number, 1 to global_batch={self.global_batch}")

    @property
    def count(self) -> int:
        """Micro-batches of a step."""
        return -(-self.global_batch // self.size)

    def samples(self, number: int) -> range:
        """Which samples of the global batch a micro-batch holds."""
        return range(number * self.size, min((number + 1) * self.size, self.global_batch))


@dataclass(frozen=True)
class Shares:
    """How ``count`` numbers are dealt to ``world_size`` ranks, and what falls to ``rank``."""

    count: int
    rank: int
    world_size: int
    in_turn: bool = False

    def of(self, rank: int) -> range:
        """A rank's numbers, rising; one more or less than another rank's, or none."""
        if self.in_turn:
            return range(rank, self.count, self.world_size)
        return range(self.count * rank // self.world_size, self.count * (rank + 1) // self.world_size)

    @property
    def own(self) -> range:
        """This rank's numbers."""
        return self.of(self.rank)

    @property
    def rounds_max(self) -> int:
        """The most micro-batches that a rank has."""
        return -(-self.count // self.world_size)
