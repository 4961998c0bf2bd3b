"""A program for test_recorder.py: ``recorder_ranks.py SCENARIO WORLD FOLDER`` forks ranks that use torch.distributed.

Each rank records into ``FOLDER/comm.<rank>`` and writes what it found to ``FOLDER/result.<rank>``; the ring stays.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from integration.recorder_device import coalesced, device_operations, frozen
from integration.recorder_rank import Rank, operations
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ftrain.comm.native import load_native
from ftrain.comm.ring import (
    COMMUNICATORS_MAX,
    NATIVE,
    RECORDS_MAX,
    Identity,
    RingReader,
    is_pending,
    ring_path,
)


def every_operation(rank: Rank) -> list[Any]:
    """The same operations with the bare kernels, then recorded; tells both results."""
    rank.recorder.uninstall()
    bare = operations(rank)
    rank.recorder.install()
    return [bare, operations(rank)]


def layers(rank: Rank) -> list[Any]:
    """DDP, FSDP2, DTensor, functional collectives and groups of all kinds, bare and recorded."""
    rank.recorder.uninstall()
    bare = train(rank)
    rank.recorder.install()
    return [bare, train(rank)]


def train(rank: Rank) -> list[float]:
    """Losses of a few steps."""
    found: list[float] = []
    torch.manual_seed(1)
    data = torch.randn(4, 16) + rank.rank
    plain = DistributedDataParallel(torch.nn.Linear(16, 16))
    sharded = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    for module in (*sharded, sharded):
        fully_shard(module)
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss = model(data).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    mesh = init_device_mesh("cpu", (2, rank.world // 2), mesh_dim_names=("outer", "inner"))
    matrix = distribute_tensor(torch.arange(64.0).reshape(8, 8), mesh, [Shard(0), Shard(1)])
    found.append(matrix.redistribute(placements=[Replicate(), Replicate()]).to_local().sum().item())
    reduced = functional.all_reduce(torch.ones(3) * rank.rank, "sum", mesh.get_group("inner"))
    found.append(functional.wait_tensor(reduced).sum().item())
    back = dist.new_group([2, 1])
    if rank.rank in (1, 2):
        there = torch.ones(2)
        dist.broadcast(there, 2, group=back)
    return found


def anew(rank: Rank) -> None:
    """A group of the same name as one that is gone."""
    for generation in (1, 2):
        dist.all_reduce(rank.tensor())
        dist.destroy_process_group()
        join(rank, generation)
    dist.all_reduce(rank.tensor())


def stopped(rank: Rank) -> None:
    """Rank 1 stops itself instead of the second operation."""
    dist.all_reduce(rank.tensor())
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(rank.tensor())


def holding(rank: Rank) -> None:
    """Rank 1 keeps the GIL in C instead of the second operation."""
    dist.all_reduce(rank.tensor())
    if rank.rank == 1:
        ctypes.PyDLL(None).sleep(60)
    dist.all_reduce(rank.tensor())


def failing(rank: Rank) -> list[str]:
    """An operation that raises at once, and one that runs into its timeout."""
    errors = []
    for operation in (
        lambda: dist.all_gather([rank.tensor(3)] * rank.world, rank.tensor(8)),
        lambda: dist.recv(rank.tensor(), 1 - rank.rank),
    ):
        try:
            operation()
        except Exception as error:
            errors.append(type(error).__name__)
    return errors


def many(rank: Rank) -> list[int]:
    """A ring that wraps while one receive is pending, and more groups than its table holds."""
    request = dist.irecv(rank.tensor(), 1 - rank.rank)
    pair = [dist.new_group([member]) for member in (0, 1)]
    for _ in range(RECORDS_MAX + 100):
        dist.all_reduce(torch.ones(1), group=pair[rank.rank])
    reader = RingReader(ring_path(rank.folder, rank.rank))
    recent = reader.channels(1)[1]
    pending = recent["id"][is_pending(recent)].tolist()
    for _ in range(COMMUNICATORS_MAX):
        pair = [dist.new_group([member]) for member in (0, 1)]
        dist.all_reduce(torch.ones(1), group=pair[rank.rank])
    dist.send(rank.tensor(), 1 - rank.rank)
    assert request is not None
    request.wait()
    return pending


def busy(rank: Rank) -> None:
    """Records that a reader can check, as fast as they can be written; until the test says that it has seen enough."""
    tensors = [torch.zeros(count + 1) for count in range(7)]
    while not (rank.folder / "enough").exists():
        for number in range(1, 700):
            dist.all_reduce(tensors[number % 7])
        dist.all_reduce(tensors[0])


def covering(rank: Rank) -> list[float]:
    """Operations that cover computation and others that block, between ranks of which one computes twice as long.

    Returns how long it waited for them, by the program's own clock and by the recorder's; and for a processor.
    """
    reader = RingReader(ring_path(rank.folder, rank.rank))
    waits: list[float] = []

    def compute(seconds: float) -> None:
        end = time.thread_time() + seconds * (1 + rank.rank)
        while time.thread_time() < end:
            pass

    def timed(operation: Callable[[], Any]) -> None:
        begun = time.monotonic()
        operation()
        waits.append(time.monotonic() - begun)

    for step in range(6):
        if step == 1:  # the first of everything takes torch long
            waits.clear()
            waited, starved = reader.live().waited_ns, starved_seconds()
        works = []
        for _ in range(4):
            compute(0.005)
            works.append(dist.all_reduce(rank.tensor(1 << 12), async_op=True))
        for work in works:
            timed(work.wait)
        compute(0.01)
        timed(lambda: dist.all_reduce(rank.tensor()))
        compute(0.01)
        timed(lambda: dist.reduce_scatter_tensor(rank.tensor(4), rank.tensor(8)))
        compute(0.01)
        timed(lambda: functional.wait_tensor(functional.all_reduce(rank.tensor(), "sum", dist.group.WORLD)))
        rank.recorder.mark(step)
    return [sum(waits), (reader.live().waited_ns - waited) * 1e-9, starved_seconds() - starved]


def aside(rank: Rank) -> list[float]:
    """A thread of rank 0 waits for rank 1 in a group of its own, for as long as rank 0 makes steps.

    Returns how long it has waited for operations by the recorder: in these steps; and in one in which it waits itself.
    """
    group = dist.new_group([0, 1], backend="gloo")
    reader = RingReader(ring_path(rank.folder, rank.rank))
    dist.all_reduce(rank.tensor())
    rank.recorder.mark(0)
    if rank.rank == 1:
        dist.recv(rank.tensor(), 0)
        time.sleep(ASIDE_SECONDS)
        dist.all_reduce(rank.tensor())
        dist.barrier(group)
        return []
    thread = threading.Thread(target=dist.barrier, args=(group,))
    thread.start()
    while reader.live().inside == 0:
        pass
    waited = [reader.live().waited_ns]
    for step in range(1, 4):
        time.sleep(ASIDE_SECONDS)
        rank.recorder.mark(step)
    waited.append(reader.live().waited_ns)
    dist.send(rank.tensor(), 1)
    dist.all_reduce(rank.tensor())
    rank.recorder.mark(4)
    waited.append(reader.live().waited_ns)
    thread.join()
    return [(after - before) * 1e-9 for before, after in pairwise(waited)]


ASIDE_SECONDS = 0.1


def starved_seconds() -> float:
    """How long this thread has waited for a processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) * 1e-9


SCENARIOS: dict[str, Callable[[Rank], Any]] = {
    f.__name__: f
    for f in (
        every_operation,
        layers,
        anew,
        stopped,
        holding,
        device_operations,
        frozen,
        coalesced,
        failing,
        many,
        busy,
        covering,
        aside,
    )
}


FAILING_SECONDS = 5.0
"""That something is waited for in vain; ranks must have met within it."""


def join(rank: Rank, generation: int, timeout_seconds: float = 300.0) -> None:
    store = dist.FileStore(str(rank.folder / f"store-{generation}"), rank.world)
    timeout = timedelta(seconds=timeout_seconds)
    dist.init_process_group("gloo", store=store, rank=rank.rank, world_size=rank.world, timeout=timeout)


def run(scenario: str, rank: Rank) -> None:
    identity = Identity(NATIVE, os.getpid(), rank.rank, rank.rank, rank.world, 1)
    rank.recorder.install()
    rank.recorder.open(ring_path(rank.folder, rank.rank), identity)
    join(rank, 0, FAILING_SECONDS if scenario == "failing" else 300.0)
    result = SCENARIOS[scenario](rank)
    (rank.folder / f"result.{rank.rank}").write_text(json.dumps(result))
    rank.recorder.close()


def main() -> None:
    scenario, world, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    recorder = load_native(build=True)
    children = []
    for number in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                run(scenario, Rank(number, world, folder, recorder))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    (folder / "pids").write_text(json.dumps(children))
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children))


if __name__ == "__main__":
    main()
