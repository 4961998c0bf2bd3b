"""The training that scripts/bench/recovery.py breaks: one body, under ftrain or under torchrun.

    recovery_worker.py ftrain FOLDER         state comes back from ftrain's snapshots
    recovery_worker.py torchrun FOLDER       state comes back from the checkpoint of the last step, FOLDER/checkpoint.pt

Each rank appends ``step time pid restarts`` to FOLDER/rank-N as soon as a step is computed, before it is snapshotted or
saved: the benchmark measures from outside, by these lines alone. ftrain is imported under ftrain only, so that
torchrun does not pay for it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

if TYPE_CHECKING:
    import ftrain

STEPS = 1_000_000  # the benchmark ends the run
WIDTH, CONTEXT, SAMPLES = 64, 64, 8


class Training:
    """A small transformer, its optimizer, and the step that both sides run."""

    def __init__(self, rank: int, folder: Path) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=4 * WIDTH, batch_first=True)
        self.model = DDP(nn.TransformerEncoder(layer, num_layers=2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.rank = rank
        self.lines = os.open(folder / f"rank-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def step(self, step: int) -> None:
        """Train one step and note that it is done."""
        data = torch.randn(SAMPLES, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(step * 64 + self.rank))
        (self.model(data) - data.flip(1)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
        os.write(self.lines, f"{step} {time.time()} {os.getpid()} {restarts}\n".encode())


def under_ftrain(folder: Path) -> None:
    import ftrain

    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        training = Training(ctx.rank, folder)
        ctx.track(model=training.model, optimizer=training.optimizer)
        for step in ctx.steps(STEPS):
            training.step(step)

    train()


def under_torchrun(folder: Path) -> None:
    dist.init_process_group("gloo")
    training = Training(dist.get_rank(), folder)
    checkpoint, start = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        training.model.load_state_dict(saved["model"])
        training.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        start = saved["step"] + 1
    for step in range(start, STEPS):
        training.step(step)
        if training.rank == 0:
            state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
            torch.save({**state, "rng": torch.get_rng_state(), "step": step}, folder / "checkpoint.new")
            (folder / "checkpoint.new").rename(checkpoint)


if __name__ == "__main__":
    {"ftrain": under_ftrain, "torchrun": under_torchrun}[sys.argv[1]](Path(sys.argv[2]))
