"""Sharded state as a standard checkpoint: whole tensors, other worlds and the same ranks read it back, bit by bit.

No rank is a process: torch's ``fake`` backend lets this one be each rank of a job in turn, as long as none speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import durable_job
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from durable_memory import assert_bits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from ftrain.durable.attempt import Job
from ftrain.durable.reader import Checkpoint, read_state
from ftrain.durable.source import FoldersSource
from ftrain.durable.writer import run
from ftrain.errors import StateMismatch
from ftrain.state import load_state, state_of
from ftrain_snapshot.storage import Storage
from ftrain_snapshot.words import SnapshotId

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WORLD, VOCABULARY, WIDTH = 4, 7, 6
Objects = dict[str, Any]


class Net(nn.Module):
    """Tied, uneven, with a row that only one rank has; its values tell where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.up = nn.Linear(WIDTH, 10)
        self.down = nn.Linear(10, 1)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters(), 1):
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 1000 * number)
        self.head.weight = self.embedding.weight


class Copies:
    """A user's object, with a sharded tensor in a tuple, which DCP takes for one object."""

    def __init__(self, model: nn.Module) -> None:
        copies = [one_more(parameter.detach()) for parameter in model.parameters()]
        self.values: Any = {"list": copies, "pair": (1, torch.ones(2))}

    def state_dict(self) -> Any:
        return self.values

    def load_state_dict(self, state: Any) -> None:
        self.values = state


def one_more(tensor: Any) -> Tensor:
    """``tensor + 1`` without a word to other ranks, which DTensor speaks for rows that only one rank has."""
    if not isinstance(tensor, DTensor):
        return tensor + 1
    placed = tensor.device_mesh, tensor.placements
    return DTensor.from_local(local(tensor) + 1, *placed, run_check=False, shape=tensor.shape, stride=tensor.stride())


def whole() -> Net:
    return Net()


def fsdp() -> Net:
    model = Net()
    fully_shard(model.up)
    return fully_shard(model)


def hsdp() -> Net:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return fully_shard(Net(), mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p.shape == (10, WIDTH) else None)


def parallel(mesh: Any) -> Net:
    plan = {"embedding": RowwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Net(), mesh, plan, src_data_rank=None)
    model.head.weight = model.embedding.weight
    return model


def both() -> Net:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return fully_shard(parallel(mesh["tp"]), mesh=mesh["dp"])


def copies_of_parallel() -> Net:
    """Two meshes with the same names, side by side: the second's tensors are others, as far as anybody knows."""
    return parallel(init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"])


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        _clear_sharding_prop_cache()  # its specs keep this rank's meshes


def build(layout: Callable[[], Net], *, stepped: bool = True) -> Objects:
    model = layout()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, foreach=False)
    if stepped:
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer, "copies": Copies(model)}


def local(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value._local_tensor
    if isinstance(value, dict):
        return {key: local(item) for key, item in value.items()}
    return type(value)(map(local, value)) if type(value) in (list, tuple) else value


class Written:
    """A checkpoint of a layout, and what each rank had."""

    def __init__(self, folder: Path, layout: Callable[[], Net]) -> None:
        self.path, self.states = Storage(str(folder / "to")).path(3), list[Any]()
        snapshot = SnapshotId(3, 1, 0)
        for rank in range(WORLD):
            with as_rank(rank, WORLD):
                objects = build(layout)
                node = folder / f"node{rank // 2}"
                durable_job.capture(objects, rank, WORLD, snapshot, node, rank % 2, shared=set())
                self.states.append({name: local(state_of(tracked)) for name, tracked in objects.items()})
        source = FoldersSource({position: folder / f"node{position}" for position in range(2)}, snapshot)
        jobs = [
            Job(url=str(folder / "to"), snapshot=snapshot, position=position, positions=2, lanes=2, timeout_seconds=200)
            for position in range(2)
        ]
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda job: run(job, lambda: source), jobs)) == [0, 0]

    def load(self, objects: Objects) -> None:
        """With plain DCP, into what is there."""
        state = {name: objects[name].state_dict() for name in ("model", "optimizer", "copies")}
        with torch.no_grad():
            for tensor in tensors(state):
                local(tensor).fill_(-1)
        dcp.load(state, checkpoint_id=self.path, no_dist=True)
        objects["copies"].values = state["copies"]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


LAYOUTS = [fsdp, hsdp, both, copies_of_parallel]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_dcp_reads_it_whole_and_sharded_in_another_world_and_each_rank_resumes(
    tmp_path: Path, layout: Callable[[], Net]
) -> None:
    written = Written(tmp_path, layout)
    expected = build(whole)
    found = build(whole)
    written.load(found)
    for name in expected:
        assert_bits(state_of(found[name]), state_of(expected[name]), name)
    with as_rank(1, 3):
        expected, found = build(fsdp), build(fsdp)
        written.load(found)
        for name in expected:
            assert_bits(local(state_of(found[name])), local(state_of(expected[name])), name)
    for rank in (1, WORLD - 1):
        with as_rank(rank, WORLD):
            objects = build(layout, stepped=False)
            state = read_state(Checkpoint(written.path), rank, WORLD).tree["objects"]
            for name, tracked in objects.items():
                load_state(name, tracked, state[name], objects.values())
                assert_bits(local(state_of(tracked)), written.states[rank][name], f"rank {rank}: {name}")


def test_each_part_is_stored_once(tmp_path: Path) -> None:
    stored = dcp.FileSystemReader(Written(tmp_path, hsdp).path).read_metadata()
    rows = stored.state_dict_metadata["model.embedding.weight"]
    assert [(tuple(c.offsets), tuple(c.sizes)) for c in rows.chunks] == [((0, 0), (4, 6)), ((4, 0), (3, 6))]
    columns = stored.state_dict_metadata["optimizer.state.1.exp_avg"]
    assert [(tuple(c.offsets), tuple(c.sizes)) for c in columns.chunks] == [((0, 0), (10, 3)), ((0, 3), (10, 3))]
    assert not [key for key in stored.state_dict_metadata if key.startswith("ftrain.rank") and "exp_avg" in key]


def test_another_layout_at_the_same_number_of_ranks_is_refused(tmp_path: Path) -> None:
    written = Written(tmp_path, fsdp)
    with as_rank(1, WORLD):
        state = read_state(Checkpoint(written.path), 1, WORLD).tree["objects"]
        model = build(hsdp)["model"]
        with pytest.raises(StateMismatch, match=r"embedding\.weight was captured sharded, .* and is .*replicate=2 x"):
            load_state("model", model, state["model"])
    with pytest.raises(StateMismatch, match=r"captured sharded.* and is not sharded here"):
        load_state("model", build(whole)["model"], state["model"])
