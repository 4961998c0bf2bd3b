"""A rank for test_comm_reader.py: ``worker_comm.py operations|steps STORE_FILE``, recorded as under `ftrain run`.

``operations``: each kind of operation once; prints "done" and a hash of all results, and goes on when stdin does.
``steps``: steps of a few operations, for ever; prints "step" after the tenth.
"""

from __future__ import annotations

import hashlib
import os
import sys
from itertools import count

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ftrain.comm import worker

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
_results: list[torch.Tensor] = []


def new(length: int = 8) -> torch.Tensor:
    _results.append(torch.arange(length, dtype=torch.float32) + RANK)
    return _results[-1]


def collectives(group: dist.ProcessGroup) -> None:
    root, first = dist.get_global_rank(group, 1), dist.get_rank(group) == 0
    size = dist.get_world_size(group)
    outputs = [new() for _ in range(size)]
    dist.all_reduce(new(), group=group)
    dist.broadcast(new(), root, group=group)
    dist.reduce(new(), root, group=group)
    dist.all_gather(outputs, new(), group=group)
    dist.all_gather_into_tensor(new(8 * size), new(), group=group)
    dist.gather(new(), outputs if first else None, dist.get_global_rank(group, 0), group=group)
    dist.scatter(new(), outputs if first else None, dist.get_global_rank(group, 0), group=group)
    dist.reduce_scatter(new(), outputs, group=group)
    dist.reduce_scatter_tensor(new(), new(8 * size), group=group)
    dist.all_to_all_single(new(), new(), group=group)
    dist.barrier(group)
    dist.monitored_barrier(group)
    later = dist.all_reduce(new(), group=group, async_op=True)
    assert later is not None
    later.wait()
    objects: list[object] = [None] * size
    dist.all_gather_object(objects, RANK, group=group)
    assert objects == dist.get_process_group_ranks(group)


def sends() -> None:
    after, before = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    if RANK == 0:
        dist.send(new(), after, tag=7)
        dist.recv(new())
    elif RANK == 1:
        dist.recv(new(), before, tag=7)
        dist.send(new(), before)
    both = [dist.P2POp(dist.isend, new(), after), dist.P2POp(dist.irecv, new(), before)]
    for work in dist.batch_isend_irecv(both):
        work.wait()


def layers() -> None:
    torch.manual_seed(1)
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 8) + RANK + step).sum().backward()
        optimizer.step()
    _results.extend(parameter.detach() for parameter in model.parameters())
    mesh = init_device_mesh("cpu", (WORLD // 2, 2), mesh_dim_names=("dp", "tp"))
    _results.append(distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh["tp"], [Shard(0)]).full_tensor())
    _results.append(functional.all_reduce(new(), "sum", dist.group.WORLD))
    _results.append(functional.reduce_scatter_tensor(new(8 * WORLD), "sum", 0, dist.group.WORLD))


def operations() -> None:
    collectives(dist.group.WORLD)
    pair = dist.new_group([0, 1])
    if RANK < 2:
        collectives(pair)
    sends()
    layers()
    digest = hashlib.sha256(b"".join(result.numpy().tobytes() for result in _results)).hexdigest()
    dist.barrier()
    print("done", type(dist.group.WORLD).__name__, digest, flush=True)
    sys.stdin.readline()


def steps() -> None:
    pair = dist.new_group([0, 1])
    for step in count():
        dist.all_reduce(new())
        dist.all_reduce(torch.ones(512), group=pair)
        _results.clear()
        worker.mark_step(step)
        if step == 10:
            print("step", flush=True)


worker.start()
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=RANK, world_size=WORLD)
{"operations": operations, "steps": steps}[sys.argv[1]]()
dist.destroy_process_group()
