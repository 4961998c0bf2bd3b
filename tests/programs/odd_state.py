"""A plain model cut by hand, whose optimizer keeps for some steps what no layout describes.

Before the step ``--odd`` is made it has something beside each parameter that is neither of its shape nor a scalar.
"""

import argparse
from pathlib import Path

import torch
from holding import add_argument, hold
from torch import nn

import ftrain

ROWS = 12


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--odd", type=int, required=True)
    add_argument(parser)
    args = parser.parse_args()
    rows = ROWS // ctx.world_size
    whole = torch.arange(ROWS * 3.0).view(ROWS, 3)
    net = nn.ParameterDict({"weight": whole[ctx.rank * rows : (ctx.rank + 1) * rows].clone()})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    ctx.layout({"net.weight": "world: shard(0)"})
    ctx.track(net=net, optimizer=optimizer)
    for step in ctx.steps(args.steps):
        hold(args, step)
        optimizer.zero_grad()
        net["weight"].sum().backward()
        optimizer.step()
        optimizer.state[net["weight"]]["odd"] = torch.zeros(()) if step >= args.odd else torch.zeros(5)
    (args.out / f"end-{ctx.rank}").write_text(str(net["weight"].tolist()))


train()
