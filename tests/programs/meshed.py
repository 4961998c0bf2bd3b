"""FSDP2 x tensor parallel on the mesh that `ctx.mesh` makes of the ranks that there are, always two to a model.

Each step trains on all samples, in equal shares, so that any number of data parallel ranks does the same. Each rank
appends a line a step; at the end all parameters are saved, whole. ``--pace`` makes steps last, until there is a file
``quick`` in the output folder.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from holding import add_argument, hold
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ftrain


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that a step takes at least")
    add_argument(parser)
    return parser.parse_args()


@ftrain.resilient
def train(ctx: ftrain.Context, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mesh = ctx.mesh("dp", "tp", tp=2)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.randn(24, 8, dtype=torch.float64)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ctx.track(model=model, optimizer=optimizer)
    mine = x[mesh["dp"].get_local_rank() :: mesh["dp"].size()]
    with (options.out / f"rank-{ctx.rank}.jsonl").open("a", buffering=1) as log:
        for step in ctx.steps(options.steps):
            hold(options, step)
            began = time.monotonic()
            loss = nn.functional.mse_loss(model(mine), mine[:, :4].square())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.write(json.dumps({"step": step, "mesh": tuple(mesh.shape)}) + "\n")
            if not (options.out / "quick").exists():
                time.sleep(max(0.0, began + options.pace - time.monotonic()))
    whole = {name: p.full_tensor() for name, p in model.named_parameters() if isinstance(p, DTensor)}
    if ctx.rank == 0:
        torch.save(whole, options.out / "end.pt")


if __name__ == "__main__":
    train(parse())
