"""Programs of made-up jobs: what one step of each rank does (compute, collectives that block or run beside the
computation, sends and receives), for the usual ways to be parallel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

ALL = "world"


class Compute(NamedTuple):
    seconds: float


class Reduce(NamedTuple):
    """An all-reduce that blocks."""

    group: str
    bytes: int = 1 << 20


class Start(NamedTuple):
    """One that runs beside what follows, until `WaitAll`."""

    group: str
    bytes: int = 1 << 20


class WaitAll(NamedTuple):
    pass


class Until(NamedTuple):
    """Sleep until so many seconds after the step's beginning, if that is not over."""

    seconds: float


class Send(NamedTuple):
    peer: int


class Receive(NamedTuple):
    peer: int


Item = Compute | Reduce | Start | WaitAll | Until | Send | Receive


@dataclass
class Shape:
    """Who runs what. A rank's groups are known by their names."""

    programs: list[list[Item]]
    groups: dict[str, tuple[int, ...]]
    ranks_per_node: int = 2

    @property
    def nodes(self) -> dict[int, str]:
        return {rank: f"node{rank // self.ranks_per_node}" for rank in range(len(self.programs))}


def data_parallel(ranks: int, buckets: int = 1, *, beside: bool = False, seconds: float = 0.05) -> Shape:
    """DP: gradients in buckets, after the backward or beside it."""
    world = {ALL: tuple(range(ranks))}
    if not beside:
        return Shape([[Compute(seconds), *([Reduce(ALL)] * buckets)] for _ in range(ranks)], world)
    backward = [item for _ in range(buckets) for item in (Compute(seconds * 2 / 3 / buckets), Start(ALL))]
    return Shape([[Compute(seconds / 3), *backward, WaitAll(), Compute(seconds / 50)] for _ in range(ranks)], world)


def paced(ranks: int, seconds: float) -> Shape:
    """DP whose ranks each see to it that a step lasts so long."""
    program: list[Item] = [Compute(0.02), Reduce(ALL), Compute(0.005), Reduce(ALL, 8), Until(seconds)]
    return Shape([program] * ranks, {ALL: tuple(range(ranks))}, ranks_per_node=1)


def with_tensor_parallel(replicas: int, parts: int, layers: int = 4, *, beside: bool = False) -> Shape:
    """DP x TP: neighbours share layers and meet after each; then gradients among replicas."""
    groups, programs = {}, []
    for rank in range(replicas * parts):
        tensor, data = f"tp{rank // parts}", f"dp{rank % parts}"
        first = rank - rank % parts
        groups[tensor] = tuple(range(first, first + parts))
        groups[data] = tuple(range(rank % parts, replicas * parts, parts))
        gradient: Item = Start(data) if beside else Reduce(data)
        forward: list[Item] = [item for _ in range(layers) for item in (Compute(0.015 / layers), Reduce(tensor, 4096))]
        backward: list[Item] = [
            item
            for _ in range(layers)
            for item in (Compute(0.035 / layers), Reduce(tensor, 4096), *([gradient] if beside else []))
        ]
        programs.append([*forward, *backward, *([WaitAll()] if beside else [gradient] * 3)])
    return Shape(programs, groups, ranks_per_node=parts)


def with_pipeline(replicas: int, stages: tuple[float, ...], microbatches: int = 4) -> Shape:
    """DP x PP: the ranks of a pipeline follow each other; their stages take unequally long. The loss goes to all."""
    depth = len(stages)
    groups, programs = {ALL: tuple(range(replicas * depth))}, []
    for rank in range(replicas * depth):
        stage = rank % depth
        group = f"stage{stage}"
        groups[group] = tuple(range(stage, replicas * depth, depth))
        program: list[Item] = []
        for forward in (True, False):
            before, after = (rank - 1, rank + 1) if forward else (rank + 1, rank - 1)
            first, last = (stage == 0, stage == depth - 1) if forward else (stage == depth - 1, stage == 0)
            for _ in range(microbatches):
                program += [] if first else [Receive(before)]
                program.append(Compute(stages[stage] / microbatches / (3 if forward else 1.5)))
                program += [] if last else [Send(after)]
        programs.append([*program, *([Reduce(group)] if replicas > 1 else []), Reduce(ALL, 4)])
    return Shape(programs, groups, ranks_per_node=depth)
