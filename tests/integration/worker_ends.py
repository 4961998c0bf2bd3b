"""A training function that ends in the way its argument says."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import ftrain
from ftrain import outcome
from ftrain_snapshot.control import ControlPage

outcome.FATE_TIMEOUT_SECONDS = 0.2


class Opaque:
    def state_dict(self):
        return {"good": 1, "handlers": [1, lambda: 0]}

    def load_state_dict(self, state):
        pass


class Growing:
    def __init__(self):
        self.values = [torch.zeros(10)]

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = state["values"]


def wait_settled(step: int) -> None:
    """Until all before this step is sealed or skipped: the daemon has opened its gate as often."""
    page = ControlPage(Path(os.environ["FTRAIN_NODE_DIR"]))
    while page.gate()[0] <= step:
        time.sleep(0.001)
    page.close()


@ftrain.resilient
def train(ctx: ftrain.Context, way: str, *, total: int = 4) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    growing = Growing()
    ctx.track(model=model, optimizer=optimizer, growing=growing)
    if way == "opaque":
        ctx.track(opaque=Opaque())
    for step in ctx.steps(total):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ctx.log("done", loss=1 / 3)
        if way == "grow":
            wait_settled(step)
        if step != 1:
            continue
        if way == "raise":
            raise LookupError("no such thing\nand more")
        if way == "peer":
            raise RuntimeError("[/pytorch/third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
        if way.startswith("exit"):
            sys.exit(int(way.removeprefix("exit")))
        if way == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        if way == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        if way == "grow":
            growing.values.append(torch.zeros(1_000_000))


if __name__ == "__main__":
    train(sys.argv[1])
