"""Frees what a generation held in a process that goes on: frames, models, process groups, in this order.

A group closes no socket while anything refers to it: a DDP reducer, a device mesh, FSDP's state, the frames of a
traceback (FACTS 6). So the frames are emptied first.
"""

from __future__ import annotations

import gc
import sys
import traceback

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ftrain import sever


def clear_frames(error: BaseException) -> None:
    """What the function's frames refer to, its model and groups, must go: tracebacks hold it otherwise."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


def let_go() -> None:
    """Free all that the generation held. Modules before groups: a DDP that outlives its group may wait for it."""
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
    else:
        distributed_c10d._world.group_count = 0  # a group that could not be formed has counted: others do not know it
    _forget_meshes()
    gc.collect()
    sever.sockets.forget()


def _forget_meshes() -> None:
    """DTensor remembers how it has spread operators, and the meshes with it."""
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is not None:
        tensor.DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
        clear = getattr(torch._C, "_clear_DTensor_sharding_propagator_cache", None)
        if clear is not None:
            clear()
