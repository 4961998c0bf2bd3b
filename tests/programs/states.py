"""A small training whose first rank keeps each step's state dicts as files, to compare checkpoints with."""

import argparse
import os
from pathlib import Path

import torch
from holding import add_argument, hold
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DDP(torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler = ftrain.ElasticSampler(64, global_batch=16, seed=0)
    ctx.track(model=model, optimizer=optimizer, sampler=sampler)
    batches = iter(sampler)
    data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    for step in ctx.steps(args.steps):
        hold(args, step)
        model(data[next(batches)]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if ctx.rank == 0:
            part = args.out / f"step-{step}.part"
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
            os.replace(part, args.out / f"step-{step}.pt")


if __name__ == "__main__":
    train()
