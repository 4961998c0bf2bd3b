"""A standby's rehearsal: the work of a step, done once, so that its first in a lost rank's place is not the slowest.

A process that was forked from the zygote shares its memory until one of the two writes to it; what its first group,
model, step and snapshot touch costs it thousands of page faults, while all other ranks wait. A standby has the time to
take them before. What is made here is dropped at once, the caller puts the generators back, and neither global hooks
nor accelerators are touched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.nn.modules import module as hooks
from torch.nn.parallel import DistributedDataParallel

from ftrain.capture import Capturer
from ftrain.ddp import Buckets
from ftrain.letting_go import let_go

SAMPLES, LENGTH, WIDTH = 8, 128, 64
STEPS = 2


def rehearse() -> None:
    """Form a group of one, train a small model in it, and look at its state as a snapshot would."""
    if hooks._has_any_global_hook():  # type: ignore[no-untyped-call]
        return  # they are somebody's, and expect that one's modules
    try:
        store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        _train()
    except Exception as error:  # whatever the script has changed in torch: what it does with that is another matter
        print(f"ftrain: this standby has not rehearsed: {error!r}", flush=True)
    finally:
        let_go()


def _train() -> None:
    kind: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=4 * WIDTH, batch_first=True, **kind)
    model = DistributedDataParallel(layer)
    optimizer = torch.optim.AdamW(model.parameters())
    # Not optimizer.step(): that is wrapped to call the hooks that anybody has registered for all optimizers.
    step: Any = getattr(torch.optim.AdamW.step, "__wrapped__", torch.optim.AdamW.step)
    for _ in range(STEPS):
        with torch.enable_grad():
            model(torch.randn(SAMPLES, LENGTH, WIDTH, **kind)).square().mean().backward()
        step(optimizer)
        optimizer.zero_grad()
    Buckets(model).settle()
    capturer = Capturer(0, 1, set, 0, None)
    try:
        capturer.track({"model": model, "optimizer": optimizer})
        capturer.manifest(0, capturer.collect(lambda parameters: {}))
    finally:
        capturer.close()
