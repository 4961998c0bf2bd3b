"""What all scenarios of recorder_ranks.py are given, and the operations that more than one of them does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ftrain.comm.native import NativeRecorder


class Rank:
    """What a scenario is given."""

    def __init__(self, rank: int, world: int, folder: Path, recorder: NativeRecorder) -> None:
        self.rank, self.world, self.folder, self.recorder = rank, world, folder, recorder

    def tensor(self, count: int = 8) -> torch.Tensor:
        return torch.arange(count, dtype=torch.float32) + self.rank


def operations(rank: Rank) -> str:
    """Each operation once, and a hash of all that came out."""
    world, peer = rank.world, (rank.rank + 1) % rank.world
    before = (rank.rank - 1) % rank.world
    first = rank.rank == 0
    found: list[torch.Tensor] = []

    def new(count: int = 8) -> torch.Tensor:
        found.append(rank.tensor(count))
        return found[-1]

    def outputs() -> list[torch.Tensor]:
        return [new() for _ in range(world)]

    dist.all_reduce(new())
    dist.broadcast(new(), 1)
    dist.reduce(new(), 1)
    dist.all_gather(outputs(), new())
    dist.all_gather_into_tensor(new(8 * world), new())
    dist.gather(new(), outputs() if first else None, 0)
    dist.scatter(new(), outputs() if first else None, 0)
    dist.reduce_scatter(new(), outputs())
    dist.reduce_scatter_tensor(new(8), new(8 * world))
    dist.all_to_all_single(new(8), new(8))
    dist.all_to_all(outputs(), outputs())
    dist.barrier()
    dist.monitored_barrier()
    work = dist.all_reduce(new(), async_op=True)
    assert work is not None
    work.wait()
    if first:
        dist.send(new(), peer, tag=7)
        dist.recv(new(), before, tag=8)
    else:
        dist.recv(new(), before, tag=7)
        dist.send(new(), peer, tag=8)
    requests = [dist.isend(new(), peer), dist.irecv(new(), before)]
    for request in requests:
        request.wait()
    pair = [dist.P2POp(dist.isend, new(), peer), dist.P2POp(dist.irecv, new(), before)]
    for request in dist.batch_isend_irecv(pair):
        request.wait()
    objects: list[Any] = [None] * world
    dist.all_gather_object(objects, {"rank": rank.rank})
    dist.broadcast_object_list(objects, 0)
    digest = hashlib.sha256(json.dumps(objects).encode())
    for tensor in found:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
