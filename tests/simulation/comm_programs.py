"""What the ranks of made-up jobs do in each step: programs of computing, collectives and transfers, as plain actions.

Shapes of communication as people's jobs have them: DDP's asynchronous buckets, tensor parallelism within data
parallelism, FSDP's prefetched gathers, and pipelines with one forward and one backward in turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ftrain_launcher.detect.records import Op

FLOAT = 6


@dataclass(frozen=True)
class Compute:
    seconds: float


@dataclass(frozen=True)
class Collective:
    group: str
    """A role: the rank's own group of that name."""
    op: Op
    elements: int
    asynchronous: bool = False
    root: int = -1


@dataclass(frozen=True)
class Send:
    peer: int
    elements: int


@dataclass(frozen=True)
class Receive:
    peer: int
    elements: int
    asynchronous: bool = False


@dataclass(frozen=True)
class WaitAll:
    """For all that is outstanding."""


@dataclass(frozen=True)
class Mark:
    """A step is complete."""


@dataclass(frozen=True)
class Act:
    """Something else that happens to the rank: a fault, or what is none."""

    kind: str
    seconds: float = 0.0


Action = Compute | Collective | Send | Receive | WaitAll | Mark | Act
Program = Iterator[Action]


@dataclass(frozen=True)
class Mesh:
    """The last dimension's neighbours have neighbouring ranks."""

    dp: int
    pp: int = 1
    tp: int = 1

    @property
    def size(self) -> int:
        return self.dp * self.pp * self.tp

    def place(self, rank: int) -> tuple[int, int, int]:
        return rank // (self.pp * self.tp), rank // self.tp % self.pp, rank % self.tp

    def rank(self, dp: int, pp: int, tp: int) -> int:
        return (dp * self.pp + pp) * self.tp + tp

    def groups(self, rank: int) -> dict[str, tuple[int, ...]]:
        """The rank's groups by role."""
        dp, pp, tp = self.place(rank)
        return {
            "world": tuple(range(self.size)),
            "dp": tuple(self.rank(i, pp, tp) for i in range(self.dp)),
            "pp": tuple(self.rank(dp, i, tp) for i in range(self.pp)),
            "tp": tuple(self.rank(dp, pp, i) for i in range(self.tp)),
        }


@dataclass(frozen=True)
class Work:
    """One job's program, in numbers."""

    mesh: Mesh
    compute_seconds: float
    """Of a whole step."""
    buckets: int = 3
    layers: int = 2
    microbatches: int = 4
    fsdp: bool = False
    world_every: int = 5
    early_receives: bool = False
    """Pipelines post their receives before they compute."""
    uneven_stages: tuple[float, ...] = ()
    noise: Callable[[random.Random], float] = field(default=lambda dice: dice.lognormvariate(0.0, 0.15))


def program(work: Work, rank: int, dice: random.Random, steps: int) -> Iterator[Iterator[Action]]:
    """The rank's steps."""
    for step in range(steps):
        if work.mesh.pp > 1:
            yield pipeline_step(work, rank, dice, step)
        elif work.fsdp:
            yield fsdp_step(work, dice)
        else:
            yield replica_step(work, dice, step)


def replica_step(work: Work, dice: random.Random, step: int) -> Program:
    """DDP, with tensor parallelism inside where the mesh has it."""
    part = work.compute_seconds / (work.layers + work.buckets)
    for _ in range(work.layers):
        yield Compute(part * work.noise(dice))
        if work.mesh.tp > 1:
            yield Collective("tp", Op.ALL_REDUCE, 4096)
    if work.mesh.dp > 1:
        for bucket in range(work.buckets):
            yield Compute(part * work.noise(dice))
            yield Collective("dp", Op.ALL_REDUCE, 10_000 * (bucket + 1), asynchronous=True)
        yield WaitAll()
    if step % work.world_every == 0:
        yield Collective("world", Op.ALL_REDUCE, 1)
    yield Mark()


def fsdp_step(work: Work, dice: random.Random) -> Program:
    part = work.compute_seconds / (2 * work.layers)
    for layer in range(work.layers):
        yield Collective("dp", Op.ALL_GATHER_SINGLE, 1000 + layer)
        yield Compute(part * work.noise(dice))
    for layer in reversed(range(work.layers)):
        yield Collective("dp", Op.ALL_GATHER_SINGLE, 1000 + layer)
        yield Compute(part * work.noise(dice))
        yield Collective("dp", Op.REDUCE_SCATTER_SINGLE, 1000 + layer, asynchronous=True)
    yield WaitAll()
    yield Mark()


def pipeline_step(work: Work, rank: int, dice: random.Random, step: int) -> Program:
    """One forward, one backward; then the replicas' gradients."""
    mesh = work.mesh
    dp, stage, tp = mesh.place(rank)
    last = mesh.pp - 1
    before, after = mesh.rank(dp, stage - 1, tp), mesh.rank(dp, stage + 1, tp)
    share = work.uneven_stages[stage] if work.uneven_stages else 1.0
    part = share * work.compute_seconds / (3 * work.microbatches)

    def layer(size: float) -> Program:
        yield Compute(part * size * work.noise(dice))
        if mesh.tp > 1:
            yield Collective("tp", Op.ALL_REDUCE, 4096)

    def forward() -> Program:
        if stage > 0:
            yield Receive(before, 2048)
        yield from layer(1.0)
        if stage < last:
            yield Send(after, 2048)

    def backward() -> Program:
        if stage < last:
            yield Receive(after, 2048)
        yield from layer(2.0)
        if stage > 0:
            yield Send(before, 2048)

    def both() -> Program:
        """A forward and a backward; the gradient's receive is posted early."""
        if stage > 0:
            yield Receive(before, 2048)
        early = work.early_receives and stage < last
        if early:
            yield Receive(after, 2048, asynchronous=True)
        yield from layer(1.0)
        if stage < last:
            yield Send(after, 2048)
        yield from [WaitAll()] if early else [Receive(after, 2048)] if stage < last else []
        yield from layer(2.0)
        if stage > 0:
            yield Send(before, 2048)

    ahead = min(last - stage, work.microbatches)
    for _ in range(ahead):
        yield from forward()
    for _ in range(work.microbatches - ahead):
        yield from both()
    for _ in range(ahead):
        yield from backward()
    if mesh.dp > 1:
        yield Collective("dp", Op.ALL_REDUCE, 50_000)
    if step % work.world_every == 0:
        yield Collective("world", Op.ALL_REDUCE, 1)
    yield Mark()
