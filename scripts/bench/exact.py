"""What the bit-exact mode costs: steps of four ranks over gloo, summed as DDP and FSDP2 do it and along a fixed tree.

    .venv/bin/python scripts/bench/exact.py [--quick] [--json FILE]

The model has 4.2 million parameters and little to compute, so that communication shows: the worst case. Both ways
train in turn, in the same processes. Below: the sum across ranks alone, of the same number of floats, beside integers
of 64 bits with a common scale, which would give the same bits at any world size as well. A step's 8 micro-batches are
two to a rank with 4 ranks, which is one node of the tree; 3 ranks have two nodes each to send.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import common
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ftrain import ElasticSampler
from ftrain.exact.exchange import Exchange
from ftrain.exact.loop import Exact
from ftrain.exact.shares import Shares
from ftrain.exact.tree import nodes_of

WIDTH, LAYERS = 1024, 4
ELEMENTS = WIDTH * WIDTH * LAYERS
MICRO_BATCHES = 8
WORLDS = (4, 3)
STEP_RATIO_MAX = 1.5
SUM_RATIO_MAX = 2.0


class Trained:
    """One way of training, step by step."""

    def __init__(self, kind: str, *, deterministic: bool) -> None:
        layers: nn.Module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
        if kind == "ddp":
            layers = DistributedDataParallel(layers)
        else:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in (*layers, layers):  # type: ignore[misc]
                fully_shard(layer, mesh=mesh)
        self.model = layers
        data: Any = torch.randn(64, WIDTH)
        sampler = ElasticSampler(len(data), global_batch=2 * MICRO_BATCHES, micro_batch=2)
        self.exact = Exact({"model": layers, "sampler": sampler}, deterministic=deterministic)
        self.loader: Any = DataLoader(data, batch_sampler=sampler)

    def step(self) -> None:
        for micro in self.exact.microbatches(self.loader):
            loss: Any = self.exact.scale_loss(self.model(micro.data).square().mean(), micro.samples, 0)
            loss.backward()
        self.model.zero_grad()


def sums() -> dict[str, Callable[[], object]]:
    """The same floats summed across ranks, three ways."""
    rank, world = dist.get_rank(), dist.get_world_size()
    own = torch.randn(ELEMENTS)
    of_ranks = [nodes_of(Shares(MICRO_BATCHES, other, world).own) for other in range(world)]
    tree = Exchange([torch.empty(ELEMENTS)], None)
    summed, whole = torch.empty(ELEMENTS), torch.empty(ELEMENTS, dtype=torch.int64)
    wide = torch.empty(ELEMENTS, dtype=torch.float64)

    def integers() -> None:
        peak = own.abs().max()
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        scale = 2.0 ** (58 - int(torch.frexp(peak).exponent))
        whole.copy_(wide.copy_(own).mul_(scale).round_())
        dist.all_reduce(whole)
        summed.copy_(wide.copy_(whole).div_(scale))

    return {
        "all-reduce": lambda: dist.all_reduce(summed.copy_(own)),
        "fixed tree": lambda: tree.total({node: [own] for node in of_ranks[rank]}, of_ranks, 1),
        "integers": integers,
    }


def rank_main(rank: int, world: int, rounds: int, folder: Path) -> None:
    """One rank; the first writes what each way took, in milliseconds."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    ways: dict[str, Callable[[], object]] = {
        f"{kind} {mode}": Trained(kind, deterministic=mode == "bit-exact").step
        for kind in ("ddp", "fsdp")
        for mode in ("ordinary", "bit-exact")
    } | sums()
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):  # the first warms up
        for name, way in ways.items():
            dist.barrier()
            began = time.perf_counter()
            way()
            dist.barrier()
            if turn >= 0:
                took[name].append((time.perf_counter() - began) * 1000)
    if rank == 0:
        (folder / "found").write_text(json.dumps({name: common.median(values) for name, values in took.items()}))
    dist.barrier()
    dist.destroy_process_group()


def measure(world: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each way, all ranks on this machine."""
    with tempfile.TemporaryDirectory(prefix="bench-exact-") as name:
        folder = Path(name)
        common.run_ranks(world, rank_main, world, rounds, folder)
        found: dict[str, float] = json.loads((folder / "found").read_text())
        return found


def main() -> None:
    arguments = common.parser(__doc__ or "").parse_args()
    report = common.Report(f"{ELEMENTS / 1e6:.1f} million parameters, {MICRO_BATCHES} micro-batches, gloo")
    for world in WORLDS:
        found = measure(world, 5 if arguments.quick else 25)
        for kind in ("ddp", "fsdp"):
            ordinary, exact = found[f"{kind} ordinary"], found[f"{kind} bit-exact"]
            report.add(f"{world} ranks, {kind}: a step, ordinary", ordinary, "ms")
            report.add(f"{world} ranks, {kind}: a step, bit-exact", exact, "ms")
            report.add(f"{world} ranks, {kind}: bit-exact over ordinary", exact / ordinary, "ratio", STEP_RATIO_MAX)
        for name in ("all-reduce", "fixed tree", "integers"):
            report.add(f"{world} ranks: the sum alone, {name}", found[name], "ms")
        report.add(
            f"{world} ranks: fixed tree over all-reduce",
            found["fixed tree"] / found["all-reduce"],
            "ratio",
            SUM_RATIO_MAX,
        )
    report.write(arguments.json)


if __name__ == "__main__":
    main()
