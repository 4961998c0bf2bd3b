"""A gloo group of two nodes, to see what a collective takes between them, and that its sums are right."""

from __future__ import annotations

import time
from datetime import timedelta
from statistics import median

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from ftrain.health.words import ALL_REDUCE_BYTES, PAIR_SECONDS_MAX, PairFigures

_REPEATS = 3
_TIMEOUT = timedelta(seconds=PAIR_SECONDS_MAX)


def host(address: str) -> TCPStore:
    """The store in which the two meet, at a port of the system's choice."""
    return TCPStore(address, 0, None, is_master=True, timeout=_TIMEOUT, wait_for_workers=False)


def join(address: str, port: int) -> TCPStore:
    """The other's store."""
    return TCPStore(address, port, None, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)


def run(store: TCPStore, rank: int) -> PairFigures:
    """Some all-reduces. Raises RuntimeError if they do not get through."""
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=_TIMEOUT)
    except dist.DistStoreError as error:  # which names keys, in words of its own
        raise RuntimeError(f"the two did not meet within {_TIMEOUT.total_seconds():g} s") from error
    try:
        dist.all_reduce(torch.ones(1))
        seconds, exact = [], True
        for _ in range(_REPEATS):
            values = torch.full((ALL_REDUCE_BYTES // 4,), float(rank + 1))
            began = time.perf_counter()
            dist.all_reduce(values)
            seconds.append(time.perf_counter() - began)
            exact = exact and bool((values == 3.0).all())
        dist.barrier()  # the store goes with its host: not before both are done
        return PairFigures(median(seconds), exact)
    finally:
        dist.destroy_process_group()
