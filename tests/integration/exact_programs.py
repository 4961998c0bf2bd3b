"""A program for test_exact_programs.py: ``exact_programs.py FOLDER`` runs what scripts do with exact batches.

`result.pt` holds, by name and world size, what rank 0 ended with: parameters, or what was said.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from exact_ranks import in_world
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from ftrain import ElasticSampler, ExactMisuse, KeyedRandom, derive_seed
from ftrain.exact.loop import Exact, MicroBatch

DATA = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
STEPS = 3


def gan(*, deterministic: bool, freezes: bool) -> torch.Tensor:
    """Two models in turn, each through a loop of its own; ``freezes``: the other one does not learn meanwhile."""
    torch.manual_seed(0)
    maker, judge = DDP(nn.Linear(4, 6)), DDP(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)))
    optimizers = {model: torch.optim.Adam(model.parameters(), lr=1e-2, foreach=True) for model in (maker, judge)}
    samplers = [ElasticSampler(len(DATA), global_batch=9, micro_batch=2, seed=number) for number in range(2)]
    tracked = {"maker": maker, "judge": judge, **{f"sampler {number}": s for number, s in enumerate(samplers)}}
    exact = Exact(tracked, deterministic=deterministic)
    loaders = [DataLoader(DATA, batch_sampler=sampler) for sampler in samplers]

    def pass_of(learner: nn.Module, other: nn.Module, loader: Any, step: int) -> Iterator[tuple[MicroBatch, Any]]:
        learner.requires_grad_(True)
        other.requires_grad_(not freezes)
        for micro in exact.microbatches(loader):
            with KeyedRandom(derive_seed(5, step, micro.number)):
                noise = torch.randn(len(micro.data), 4)
            yield micro, noise
        optimizers[learner].step()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    for step in range(STEPS):
        for micro, noise in pass_of(judge, maker, loaders[0], step):
            made = (maker.module if freezes else maker)(noise).detach()
            said = judge(torch.cat([micro.data, made])).squeeze(1)
            truth = torch.arange(2).repeat_interleave(len(made)).float()
            exact.scale_loss(F.binary_cross_entropy_with_logits(said, truth), micro.samples, step).backward()
        for micro, noise in pass_of(maker, judge, loaders[1], step):
            said = (judge.module if freezes else judge)(maker(noise))
            exact.scale_loss(said.mean(), micro.samples, step).backward()
        judge(DATA)  # an evaluation that builds a graph, and no backward follows
    return torch.cat([p.detach().flatten() for model in (maker, judge) for p in model.parameters()])


class Routed(nn.Module):
    """One of four experts for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.experts[int(row.argmax()) % 4](row) for row in rows])


def experts(*, deterministic: bool) -> str:
    """FSDP2 round experts of the same size, of which a micro-batch uses one."""
    torch.manual_seed(0)
    model = fully_shard(Routed())
    sampler = ElasticSampler(len(DATA), global_batch=4, micro_batch=1)
    exact = Exact({"model": model, "sampler": sampler}, deterministic=deterministic)
    return said_by(lambda: step(exact, model, DataLoader(DATA, batch_sampler=sampler)))


def seeds() -> str:
    """A seed of each rank's own."""
    model = DDP(nn.Linear(6, 1))
    sampler = ElasticSampler(len(DATA), global_batch=4, micro_batch=1, seed=dist.get_rank())
    exact = Exact({"model": model, "sampler": sampler}, deterministic=False)
    return said_by(lambda: step(exact, model, DataLoader(DATA, batch_sampler=sampler)))


def static_graph(*, deterministic: bool) -> Any:
    """A graph that DDP takes to be the same in each backward: parameters, or what is said."""
    torch.manual_seed(0)
    model = DDP(nn.Linear(6, 1), static_graph=True)
    sampler = ElasticSampler(len(DATA), global_batch=7, micro_batch=1)
    exact = Exact({"model": model, "sampler": sampler}, deterministic=deterministic)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(DATA, batch_sampler=sampler)

    def train() -> None:
        for _ in range(STEPS):
            step(exact, model, loader)
            optimizer.step()
            optimizer.zero_grad()

    said = said_by(train)
    return said if said != "nothing" else model.module.weight.detach()


def steps_without_zero_grad() -> str:
    """Gradients that add up over two steps, without micro-batches."""
    model = DDP(nn.Linear(6, 1))
    sampler = ElasticSampler(len(DATA), global_batch=4)
    exact = Exact({"model": model, "sampler": sampler}, deterministic=False)

    def train() -> None:
        for number in range(2):
            rows = DATA[sampler.batch(number)]
            exact.scale_loss(model(rows).square().mean(), len(rows), number).backward()

    return said_by(train)


def step(exact: Exact, model: nn.Module, loader: Any) -> None:
    for micro in exact.microbatches(loader):
        exact.scale_loss(model(micro.data).square().mean(), micro.samples, 0).backward()


def said_by(training: Callable[[], None]) -> str:
    try:
        training()
    except ExactMisuse as error:
        return str(error)
    return "nothing"


def write(target: Path, programs: dict[str, Callable[[], Any]]) -> None:
    results = {name: program() for name, program in programs.items()}
    if dist.get_rank() == 0:
        torch.save(results, target)


def main(folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    gc.freeze()
    gans = {(d, f): partial(gan, deterministic=d, freezes=f) for d in (False, True) for f in (False, True)}
    misuses = {"experts": partial(experts, deterministic=False), "seeds": seeds, "steps": steps_without_zero_grad}
    static = {f"static {d}": partial(static_graph, deterministic=d) for d in (False, True)}
    alone = {"experts": partial(experts, deterministic=True)}
    found = {}
    for world in (3, 1):
        in_world(world, folder, write, folder / "one.pt", {**gans, **static, **(alone if world == 1 else misuses)})
        found[world] = torch.load(folder / "one.pt")
    torch.save(found, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
