"""The training of test_reshard_session.py: bit-exact whatever the world, under FSDP2.

Arguments: number of steps, file prefix for the outcome, step after which every rank dies (-1: none).
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

import ftrain

torch.set_num_threads(1)
DATA = torch.randint(0, 31, (203, 9), generator=torch.Generator().manual_seed(7))
WHOLE = StateDictOptions(full_state_dict=True)


class Net(nn.Module):
    """Predicts the next token; sizes that no world divides, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(31, 23)
        self.up, self.down = nn.Linear(23, 51), nn.Linear(51, 23)
        self.head = nn.Linear(23, 31, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        return self.head(x + F.dropout(self.down(F.gelu(self.up(x))), 0.1, self.training))


def await_gate(ctx: ftrain.Context) -> None:
    """Return when the last commit is sealed and a slot is free: the next one is captured for certain."""
    ctx._session._capturer.finish()
    slots = ctx._session._slots
    deadline = time.monotonic() + 30
    while slots._gate is not None and slots._gate.gate()[0] == slots._last_ticket:
        assert time.monotonic() < deadline, "the gate stays shut"
        time.sleep(0.001)


@ftrain.resilient
def train(ctx: ftrain.Context, total: int, prefix: str, die_after: int) -> None:
    torch.manual_seed(ctx.generation)  # nothing may depend on what a model is built with
    net = Net()
    if ctx.generation == 1:
        torch.manual_seed(0)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.1)
    mesh = ctx.mesh("dp")
    for part in (net.up, net):
        fully_shard(part, mesh=mesh)
    groups = [{"params": [net.tokens.weight], "lr": 0.02}, {"params": [*net.up.parameters(), *net.down.parameters()]}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    sampler = ftrain.ElasticSampler(len(DATA), global_batch=21, micro_batch=2, seed=3)
    ctx.track(model=net)
    ctx.track(optimizer=optimizer, scheduler=scheduler, sampler=sampler)
    loader = DataLoader(DATA, batch_sampler=sampler)
    losses = []
    for step in ctx.steps(total):
        if step == die_after:
            await_gate(ctx)
        for micro in ctx.microbatches(loader):
            with ctx.rng("dropout"):
                loss = F.cross_entropy(net(micro.data[:, :-1]).flatten(0, 1), micro.data[:, 1:].flatten())
            ctx.scale_loss(loss, micro.samples).backward()
        losses.append(ctx.global_loss())
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step == die_after + 1:
            ctx._session._capturer.finish()
            os.kill(os.getpid(), signal.SIGKILL)
    result = {
        "model": get_model_state_dict(net, options=WHOLE),
        "optimizer": get_optimizer_state_dict(net, optimizer, options=WHOLE),
        "scheduler": scheduler.state_dict(),
        "sampler": sampler.state_dict(),
        "losses": losses,
    }
    if dist.get_rank() == 0:
        torch.save(result, f"{prefix}.end")


if __name__ == "__main__":
    train(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
