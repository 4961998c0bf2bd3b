"""The recorder in Python, in a group of one: what it notes, and that nothing else changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from ftrain.comm import fallback
from ftrain.comm.ring import NATIVE, PYTHON, Identity, RingReader, Table, is_failed, is_pending
from ftrain.comm.writer import RingWriter
from ftrain_launcher.detect.records import Op


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RingReader]:
    """The ring of this process, which has a default group of one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(distributed_c10d, "ProcessGroup", distributed_c10d.ProcessGroup)
    monkeypatch.setattr(fallback, "_writer", None)
    fallback.install(tmp_path / "comm.0", Identity(NATIVE, os.getpid(), 0, 0, 1, 1))
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    reader = RingReader(tmp_path / "comm.0")
    yield reader
    dist.destroy_process_group()
    reader.close()


def records(ring: RingReader) -> Table:
    return ring.records(0, ring.live().head)


def test_the_header_says_who_writes(ring: RingReader):
    assert ring.identity.kind == PYTHON


def test_operations_are_noted_with_what_they_carry(ring: RingReader):
    dist.all_reduce(torch.ones(3, dtype=torch.float64))
    dist.broadcast(torch.ones(2, dtype=torch.bfloat16), 0)
    dist.monitored_barrier()
    first, second, third = records(ring)
    assert (first["op"], first["seq"], first["bytes"], first["elements"], first["dtype"]) == (
        Op.ALL_REDUCE,
        1,
        24,
        3,
        7,
    )
    assert (second["op"], second["seq"], second["bytes"], second["dtype"], second["root"]) == (
        Op.BROADCAST,
        2,
        4,
        15,
        0,
    )
    assert (third["op"], third["seq"], third["dtype"]) == (Op.MONITORED_BARRIER, 3, 65535)
    assert not is_pending(records(ring)).any()
    assert ring.groups(1)[0] == (dist.group.WORLD.group_name, "default_pg", (0,))


def test_every_new_group_is_recorded_under_its_own_name(ring: RingReader):
    dist.all_reduce(torch.ones(1), group=dist.new_group([0], group_desc="mine"))
    dist.all_reduce(torch.ones(1))
    live = ring.live()
    assert [group.description for group in ring.groups(live.communicators)] == ["mine", "default_pg"]


def test_a_work_without_a_future_is_over_when_it_was_waited_for(ring: RingReader):
    output = torch.zeros(2)
    work = dist.reduce_scatter_tensor(output, torch.ones(2), async_op=True)
    assert is_pending(records(ring)).tolist() == [True]
    assert ring.live().inside == 0, "nobody waits for it"
    work.wait()
    work.wait()
    assert is_pending(records(ring)).tolist() == [False]
    assert records(ring)["waited_ns"][0] > 0
    assert ring.live().inside == 0
    assert output.tolist() == [1, 1]


def test_an_operation_that_raises_is_noted_as_failed_and_raises_the_same(ring: RingReader):
    with pytest.raises(RuntimeError, match="ReduceOp"):
        dist.all_reduce(torch.ones(2), op=dist.ReduceOp.BAND)
    assert is_failed(records(ring)).tolist() == [True]
    live = ring.live()
    assert (live.failed, live.inside) == (1, 0)
    dist.all_reduce(torch.ones(2))
    assert is_failed(records(ring)).tolist() == [True, False]


def test_what_cannot_be_noted_goes_through(ring: RingReader, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr(RingWriter, "enter", broken)
    tensor = torch.full((2,), 5.0)
    dist.all_reduce(tensor)
    dist.all_gather([tensor], torch.full((2,), 7.0))
    assert tensor.tolist() == [7, 7]
    assert len(records(ring)) == 0


def test_a_child_records_nothing(ring: RingReader):
    fallback._stop()
    dist.all_reduce(torch.ones(1))
    assert ring.live().head == 0
