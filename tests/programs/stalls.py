"""A plain script whose rank 1 stalls at the same steps in each run, while the others wait for it in a step's sum."""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS, STALL_EVERY, STALL_SECONDS = 60, 20, 1.5

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
out = parser.parse_args().out
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = DistributedDataParallel(nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(STEPS):
    if step % STALL_EVERY == STALL_EVERY - 1 and dist.get_rank() == 1:
        time.sleep(STALL_SECONDS)
    time.sleep(0.02)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
(out / f"end-{dist.get_rank()}").touch()
