"""Scenarios of recorder_ranks.py as if a device did the operations: they count as entered once it has reached them."""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
import torch.distributed as dist
from integration.recorder_rank import Rank, operations
from torch._C._distributed_c10d import FakeProcessGroup

from ftrain.comm.ring import RingReader, ring_path


def device_operations(rank: Rank) -> list[Any]:
    """The same operations with the bare kernels, then recorded as if a device did them; tells both results."""
    rank.recorder.uninstall()
    bare = operations(rank)
    rank.recorder.install()
    rank.recorder.simulate_device(True)
    found = operations(rank)
    works = [dist.all_reduce(rank.tensor(1 << 16), async_op=True) for _ in range(20)]
    for work in works[:10]:
        work.wait()
    for work in works[10:]:
        work.get_future().wait()
    reader = RingReader(ring_path(rank.folder, rank.rank))
    while reader.live().inside > 0:
        pass
    return [bare, found]


def frozen(rank: Rank) -> None:
    """After some operations rank 1's device does nothing any more, while its process goes on to call them."""
    group = dist.group.WORLD
    assert group is not None
    rank.recorder.simulate_device(True)
    for step in range(40):
        all_reduce_on_device(rank)
        rank.recorder.mark(step)
    if rank.rank == 1:
        # Kernels that are queued on a device that hangs reach nobody: as with this backend.
        nobody = FakeProcessGroup._create_internal(1, 2)
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.CUSTOM, nobody)
        rank.recorder.freeze_device(True)
        works = [dist.all_reduce(rank.tensor(), async_op=True) for _ in range(20)]
        works.append(dist.isend(rank.tensor(), 0))
        (rank.folder / "called").touch()
        while not (rank.folder / "thaw").exists():
            time.sleep(0.01)
        rank.recorder.freeze_device(False)
        while True:
            signal.pause()
    all_reduce_on_device(rank)


def all_reduce_on_device(rank: Rank) -> None:
    work = dist.all_reduce(rank.tensor(), async_op=True)
    assert work is not None
    work.wait()


def coalesced(rank: Rank) -> list[list[int]]:
    """Calls in a group of calls, whose end gives one work for them; what their channel counts before and after that."""
    other = dist.new_group([0, 1])
    rank.recorder.simulate_device(True)
    group = dist.group.WORLD
    assert group is not None
    gives: list[dist.Work | None] = []
    dist.ProcessGroup._start_coalescing = lambda group, device: None  # type: ignore[method-assign]
    dist.ProcessGroup._end_coalescing = lambda group, device: gives.pop()  # type: ignore[method-assign]
    rank.recorder.follow_coalescing()
    reader = RingReader(ring_path(rank.folder, rank.rank))

    def counts() -> list[int]:
        (channel,) = reader.channels(1)[0].tolist()
        return [int(count) for count in channel[2:6]]

    if rank.rank == 1:
        while not (rank.folder / "seen").exists():
            time.sleep(0.01)
    gives.append(dist.all_reduce(rank.tensor(), group=other, async_op=True))
    found = []
    for _ in range(2):
        group._start_coalescing(torch.device("cpu"))
        requests = [dist.isend(rank.tensor(), 1 - rank.rank), dist.irecv(rank.tensor(), 1 - rank.rank)]
        work = group._end_coalescing(torch.device("cpu"))
        if work is not None:
            while rank.rank == 0 and reader.channels(1)[0][["sends_queued", "receives_queued"]].tolist() != [(0, 0)]:
                pass
            found.append(counts())
            (rank.folder / "seen").touch()
            work.wait()
        for request in requests:
            assert request is not None
            request.wait()
        while reader.live().inside > 0:
            pass
        found.append(counts())
        gives.append(None)
    return found
