"""Replicas under DDP, with BatchNorm (whose buffers differ by design); one bit of one rank's weights flips."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain


@ftrain.resilient
def train(ctx: ftrain.Context, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    model = DDP(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ctx.track(model=model, optimizer=optimizer)
    torch.manual_seed(100 + ctx.rank)
    for step in ctx.steps(args.steps):
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if ctx.rank == args.rank and step == args.step:
            flip(net[0].weight)
    (args.out / f"end-{ctx.rank}").touch()


def flip(weight: torch.Tensor) -> None:
    """The lowest bit of one element's mantissa."""
    weight.data.view(torch.int32).view(-1)[5] ^= 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=1, help="whose")
    parser.add_argument("--step", type=int, default=-1, help="after which; -1: never")
    train(parser.parse_args())
