"""A rank for test_reshard.py: captures models in each layout of its world, or restores each from each world's.

``reshard_ranks.py capture|restore FOLDER``: FOLDER/{layout}-{ranks}/node{rank} has a rank's lane. Models and optimizers
are those of logical_ranks.py, whose values are functions of the whole: what a target should hold is what it is built
with, before it is spoiled.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from integration.logical_ranks import LAYOUTS, RANK, WORLD, held, stepped
from integration.worker_lane import Line, allocate
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ftrain.capture import Capturer
from ftrain.durable.reader import Checkpoint
from ftrain.durable.source import FoldersSource
from ftrain.durable.units import CheckpointSource
from ftrain.errors import FtrainError
from ftrain.reshard.certificate import certify
from ftrain.reshard.comparing import compare_replicas
from ftrain.reshard.describer import Describer
from ftrain.reshard.origin import OldWorld
from ftrain.reshard.restoring import Restoring
from ftrain.reshard.storage import SnapshotReader
from ftrain.rng import rng_state
from ftrain.sampler import ElasticSampler
from ftrain.state import tensor_key, unique_parameters
from ftrain_snapshot.lane import Lane
from ftrain_snapshot.manifest import unit_bytes
from ftrain_snapshot.membership import Origin, Peer
from ftrain_snapshot.words import SnapshotId

SNAPSHOT = SnapshotId(5, 1, 0)
OF_WORLD = {
    1: ("ddp",),
    2: ("fsdp", "tensor_parallel"),
    3: ("ddp", "fsdp"),
    4: ("fsdp", "hsdp", "fsdp_tp", "stages", "by_hand"),
}
"""Layouts by number of ranks; ``ddp`` of one is a plain model."""


def build(name: str) -> tuple[dict[str, Any], Describer]:
    if name == "ddp" and WORLD == 1:
        model, rules, mesh = LAYOUTS[name]()[0].module, None, None
    else:
        model, rules, mesh = LAYOUTS[name]()
    if name == "fsdp_tp":
        rules = mesh = None  # norms are sharded over dp, and nothing says what tp has of them
    for buffer_name, buffer in model.named_buffers():
        if "running_mean" in buffer_name:
            buffer.fill_(100.0 + RANK)
    optimizer = stepped(model)
    optimizer.param_groups[0] |= {"lr": 0.125, "foreach": True}
    sampler = ElasticSampler(64, global_batch=12, seed=1, rank=RANK, world_size=WORLD)
    sampler._drawn = 6
    describer = Describer(RANK, WORLD)
    describer.rules, describer.mesh = rules, mesh
    return {"model": model, "optimizer": optimizer, "sampler": sampler}, describer


def shared_of(objects: Mapping[str, Any]) -> set[Any]:
    """Under DDP over all ranks, each keeps a range of what is the same everywhere."""
    ddp = objects["model"]
    if not isinstance(ddp, DistributedDataParallel) or dist.get_world_size(ddp.process_group) != WORLD:
        return set()
    states = objects["optimizer"].state
    values = [value for parameter in unique_parameters(objects) for value in states[parameter].values()]
    return {tensor_key(tensor) for tensor in (*unique_parameters(objects), *values)}


def capture(folder: Path, name: str) -> None:
    objects, describer = build(name)
    capturer = Capturer(RANK, WORLD, lambda: shared_of(objects), 0, Line(), describer)
    capturer.track(objects)
    torch.manual_seed(50 + RANK)
    content = capturer.collect(lambda _: {"step": 5, "gradients": {}, "buckets": {}, "rng": rng_state()})
    manifest = capturer.manifest(5, content)
    node = folder / f"{name}-{WORLD}" / f"node{RANK}"
    node.mkdir(parents=True)
    allocate(node, unit_bytes(content.data_bytes, len(manifest)))
    lane = Lane(node, 0)
    capturer.begin(SNAPSHOT, content, manifest, lane)
    capturer.close()
    assert capturer.newest == SNAPSHOT
    lane.close()


class Counting(FoldersSource):
    """Notes who is asked for how much."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: dict[int, int] = {}

    def read(self, position: int, lane: int, start: int, stop: int) -> bytes:
        self.asked[position] = self.asked.get(position, 0) + stop - start
        return super().read(position, lane, start, stop)


def open_world(folder: Path, lost: frozenset[int]) -> tuple[OldWorld, Counting]:
    nodes = len(list(folder.iterdir()))
    source = Counting({position: folder / f"node{position}" for position in range(nodes)}, SNAPSHOT)
    holders = tuple(Peer(p, f"node-{p}", "", 0) for p in range(nodes) if p not in lost)
    position = RANK if nodes > RANK and RANK not in lost else -1
    return OldWorld(Origin(SNAPSHOT, nodes, 1, (), "auto", holders, position), 1, source), source


class Stored(CheckpointSource):
    """Has nobody to ask."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.asked: dict[int, int] = {}


def open_stored(folder: Path) -> tuple[OldWorld, Stored]:
    source = Stored(Checkpoint(str(folder.parent / "stored" / folder.name / "step-00000005")))
    return OldWorld(source.origin, source.lanes, source), source


def spoil(objects: dict[str, Any]) -> None:
    """Other values everywhere, and a new optimizer."""
    with torch.no_grad():
        for tensor in (*objects["model"].parameters(), *objects["model"].buffers()):
            (tensor._local_tensor if isinstance(tensor, DTensor) else tensor).fill_(77)
    old: torch.optim.Optimizer = objects["optimizer"]
    objects["optimizer"] = torch.optim.AdamW(old.param_groups[0]["params"], lr=1.0, foreach=False)
    objects["sampler"]._drawn = 0


def restore(folder: Path, name: str, lost: frozenset[int], *, stored: bool = False) -> None:
    """Every tensor of this layout, from what another world captured; ``stored``: from its checkpoint."""
    objects, describer = build(name)
    expected = describer.describe(objects)
    values = {
        tensor.name: held(memory) for tensor, memory in zip(expected.state.tensors, expected.tensors, strict=True)
    }  # fmt: skip
    spoil(objects)
    old, source = open_stored(folder) if stored else open_world(folder, lost)
    compare_replicas(old.world, source, old.lanes, RANK, WORLD)
    source.asked.clear()
    restoring = Restoring(old, describer, RANK, WORLD)
    restoring.restore(objects, objects)
    live = describer.describe(objects)
    assert set(live.state.by_name) == set(values)
    for tensor, memory in zip(live.state.tensors, live.tensors, strict=True):
        if tensor.name == "model.norm.running_mean":
            has = [rank for rank in range(old.size) if tensor.name in old.world.states[rank].by_name]
            taken = RANK if RANK in has else has[RANK % len(has)]
            assert memory.tolist() == [100.0 + taken] * 3, (tensor.name, memory)
            continue
        size = tensor.elements * tensor.item_bytes  # the padding of a vocabulary is at its end
        assert held(memory)[:size] == values[tensor.name][:size], tensor.name
    for parameter, state in objects["optimizer"].state.items():
        assert isinstance(state["exp_avg"], DTensor) is isinstance(parameter, DTensor)
        assert not isinstance(state["step"], DTensor)
    group = objects["optimizer"].param_groups[0]
    assert (group["lr"], group["foreach"]) == (0.125, False)  # how it is computed is this world's own
    assert objects["sampler"].position == 6
    rng = restoring.rng()
    if old.size > RANK:
        torch.manual_seed(50 + RANK)
        assert rng["torch"] == torch.get_rng_state().numpy().tobytes()
    certified = certify(live, objects, restoring.names, old.world.states, 5)
    assert (certified is not None) is (RANK == 0)
    assert certified is None or (certified.counters and (certified.compared_bytes > 0) is (WORLD > 1)), certified
    if folder.name == "ddp-3" and lost:  # replicas that are there are preferred, but each keeps a range of its own
        assert set(source.asked) == {0, 1, 2}


def check_dcp(folder: Path) -> None:
    """``dcp.load`` by the reader gives what was captured; and not just by luck: the names are DCP's."""
    objects, describer = build("fsdp")
    expected = [held(memory) for memory in describer.describe(objects).tensors]
    old, _ = open_world(folder, frozenset({1}))
    optimizer = objects["optimizer"]
    names = {id(p): name for name, p in objects["model"].named_parameters()}
    states = {names[id(p)]: dict(state) for p, state in optimizer.state.items()}
    state = {"model": dict(objects["model"].state_dict()), "optimizer": {"state": states}}
    with torch.no_grad():
        for tensor in describer.describe(objects).tensors:
            tensor.fill_(77)
    dcp.load(state, storage_reader=SnapshotReader(old, RANK))
    found = [held(memory) for memory in describer.describe(objects).tensors]
    own = [tensor.name == "model.norm.running_mean" for tensor in describer.describe(objects).state.tensors]
    assert [a for a, is_own in zip(found, own, strict=True) if not is_own] == [
        b for b, is_own in zip(expected, own, strict=True) if not is_own
    ]


def attempt(source: Path, name: str, lost: frozenset[int], *, stored: bool = False) -> int:
    """How often it went wrong."""
    try:
        restore(source, name, lost, stored=stored)
    except (AssertionError, FtrainError):
        place = "storage" if stored else f"memory without {set(lost)}"
        print(f"{source.name} -> {name}-{WORLD} from {place}", traceback.format_exc(), flush=True)
        return 1
    return 0


def main(action: str, folder: Path) -> int:
    names = OF_WORLD[WORLD]
    if action == "capture":
        for name in names:
            capture(folder, name)
        return 0
    wrong = 0
    for number, source in enumerate(sorted(folder.glob("*-*"))):
        for name in names:
            for lost in (frozenset[int](), frozenset({0})) if name == names[0] else (frozenset({1}),):
                wrong += attempt(source, name, lost)
        wrong += attempt(source, names[number % len(names)], frozenset(), stored=True)
    if WORLD == 3:
        check_dcp(folder / "fsdp_tp-4")
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    store = dist.FileStore(str(where / f"store{WORLD}{sys.argv[1]}"), WORLD)
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=WORLD, timeout=timedelta(seconds=300))
    code = main(sys.argv[1], where)
    dist.destroy_process_group()
    sys.exit(code)
