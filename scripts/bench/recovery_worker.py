"""The training that scripts/bench/recovery.py breaks: one body, under ftrain, torchrun, or another rival (rivals/).

    recovery_worker.py ftrain FOLDER         state comes back from ftrain's snapshots
    recovery_worker.py idle FOLDER           the same for a few steps, then nothing
    recovery_worker.py torchrun FOLDER       state comes back from the checkpoint of the last step, FOLDER/checkpoint.pt

Each rank appends ``step time pid started`` to FOLDER/rank-N as soon as a step is computed, before it is snapshotted or
saved: the benchmark measures from outside, by these lines alone. ftrain is imported under ftrain only, so that
rivals do not pay for it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

if TYPE_CHECKING:
    import ftrain

STEPS = 1_000_000
IDLE_STEPS = 3
WIDTH, CONTEXT, SAMPLES = 64, 64, 8


class Training:
    """A small transformer, its optimizer, and the step that all sides run."""

    def __init__(self, rank: int, folder: Path, wrap: Callable[[nn.Module], nn.Module] = DDP) -> None:
        self.started_ns = time.time_ns()
        """What tells the steps after a fault from those before it: when the rank was started again, in a new process
        or not."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=4 * WIDTH, batch_first=True)
        self.model = wrap(nn.TransformerEncoder(layer, num_layers=2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.rank = rank
        self.lines = os.open(folder / f"rank-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def backward(self, step: int) -> None:
        """The step's gradients."""
        data = torch.randn(SAMPLES, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(step * 64 + self.rank))
        (self.model(data) - data.flip(1)).square().mean().backward()

    def note(self, step: int) -> None:
        """The step is done."""
        os.write(self.lines, f"{step} {time.time()} {os.getpid()} {self.started_ns}\n".encode())

    def step(self, step: int) -> None:
        """Train one step and note that it is done."""
        self.backward(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.note(step)

    def save(self, step: int, file: Path) -> None:
        """A checkpoint, for those who have no other way."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "rng": torch.get_rng_state(), "step": step}, file)

    def load(self, file: Path) -> int:
        """Go back to a checkpoint; its step."""
        saved = torch.load(file)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        return int(saved["step"])


def under_ftrain(folder: Path, steps: int = STEPS) -> None:
    import ftrain

    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        training = Training(ctx.rank, folder)
        ctx.track(model=training.model, optimizer=training.optimizer)
        for step in ctx.steps(steps):
            training.step(step)
        threading.Event().wait()  # the benchmark ends the run

    train()


def idle(folder: Path) -> None:
    under_ftrain(folder, IDLE_STEPS)


def under_torchrun(folder: Path) -> None:
    dist.init_process_group("gloo")
    training = Training(dist.get_rank(), folder)
    checkpoint = folder / "checkpoint.pt"
    start = training.load(checkpoint) + 1 if checkpoint.exists() else 0
    for step in range(start, STEPS):
        training.step(step)
        if training.rank == 0:
            training.save(step, folder / "checkpoint.new")
            (folder / "checkpoint.new").rename(checkpoint)


if __name__ == "__main__":
    {"ftrain": under_ftrain, "idle": idle, "torchrun": under_torchrun}[sys.argv[1]](Path(sys.argv[2]))
