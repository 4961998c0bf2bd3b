"""A rank for test_logical.py: builds the same model in each layout, describes it, and writes what it holds.

``logical_ranks.py FOLDER``: FOLDER/{layout}.{rank} has the description and the local tensors' bytes. Values are
functions of the whole, so that the files of one layout say what those of another should be.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from ftrain.layout import flat_bytes
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.live import describe, named_mesh
from ftrain.logical.rules import NamedMesh, Rules

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
VOCABULARY, WIDTH = 7, 6
Built = tuple[nn.Module, Rules | None, NamedMesh | None]
RULES = Rules(
    {
        "model.embedding.weight": "tp: shard(0); trim(0, 7)",
        "model.head.weight": "tp: shard(0); trim(0, 7)",
        "model.qkv.*": "tp: shard(0, parts=[12, 4, 4])",
        "model.gate_up.weight": "tp: shard(0, parts=2)",
        "model.down.weight": "tp: shard(1)",
        "model.norm.running_*": "per_rank",
        "model.norm.num_*": "per_rank",
        "model.*": "replicate",
    }
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv = nn.Linear(WIDTH, 20)
        self.gate_up = nn.Linear(WIDTH, 16, bias=False)
        self.down = nn.Linear(8, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + 1000 * number)
        self.head.weight = self.embedding.weight


def ddp() -> Built:
    return DistributedDataParallel(Model()), None, None


def fsdp() -> Built:
    model = Model()
    fully_shard(model.qkv)
    fully_shard(model)
    return model, None, None


def hsdp() -> Built:
    model = Model()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p.shape == (20, WIDTH) else None)
    return model, None, None


def parallel(mesh: DeviceMesh) -> Model:
    plan = {
        "embedding": RowwiseParallel(), "head": ColwiseParallel(), "qkv": ColwiseParallel(),
        "gate_up": ColwiseParallel(), "down": RowwiseParallel(),
    }  # fmt: skip
    model = Model()
    parallelize_module(model, mesh, plan)
    return model


def tensor_parallel() -> Built:
    return parallel(init_device_mesh("cpu", (WORLD,), mesh_dim_names=("tp",))), None, None


def fsdp_tp() -> Built:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = parallel(mesh["tp"])
    fully_shard(model, mesh=mesh["dp"])
    # Norm is not of the plan: FSDP2 shards it over dp, and each coordinate of tp has a copy, which only a rule can say.
    return model, Rules({"model.norm.weight": "tp: replicate", "model.norm.bias": "tp: replicate"}), named_mesh(mesh)


def stages() -> Built:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = Model()
    for name in ("embedding", "qkv", "gate_up") if RANK >= 2 else ("down", "norm", "head"):
        setattr(model, name, None)
    return DistributedDataParallel(model, process_group=groups[RANK // 2]), None, None


def by_hand() -> Built:
    """As Megatron does: plain tensors, the vocabulary padded to 8."""
    mesh = NamedMesh(("dp", "tp"), (2, 2), divmod(RANK, 2))
    tp, model = RANK % 2, Model()
    padded = torch.cat([model.embedding.weight.detach(), torch.full((1, WIDTH), -1.0)])
    model.embedding.weight = model.head.weight = nn.Parameter(padded[4 * tp : 4 * tp + 4].clone())
    for parameter_name in ("weight", "bias"):
        parts = getattr(model.qkv, parameter_name).detach().split([12, 4, 4])
        setattr(model.qkv, parameter_name, nn.Parameter(torch.cat([part.chunk(2)[tp] for part in parts])))
    halves = model.gate_up.weight.detach().chunk(2)
    model.gate_up.weight = nn.Parameter(torch.cat([half.chunk(2)[tp] for half in halves]))
    model.down.weight = nn.Parameter(model.down.weight.detach()[:, 4 * tp : 4 * tp + 4].t().contiguous().t())
    return model, RULES, mesh


LAYOUTS: Mapping[str, Callable[[], Built]] = {
    "ddp": ddp, "fsdp": fsdp, "hsdp": hsdp, "tensor_parallel": tensor_parallel, "fsdp_tp": fsdp_tp,
    "stages": stages, "by_hand": by_hand,
}  # fmt: skip


MASTERS = ("ddp", "fsdp", "hsdp", "tensor_parallel", "fsdp_tp")
"""Where all ranks number their parameters alike: an optimizer that alone has wider clones of them."""


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with state: moments made of the parameters' own values, which do not move."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, foreach=False)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def held(tensor: Tensor) -> bytes:
    data = flat_bytes(tensor)
    assert data is not None
    return data.numpy().tobytes()


def main(folder: Path) -> None:
    for name, build in LAYOUTS.items():
        model, rules, mesh = build()
        for buffer_name, buffer in model.named_buffers():
            if "running_mean" in buffer_name:
                buffer.fill_(100.0 + RANK)
        objects = {"optimizer": stepped(model), "model": model, "noise": torch.tensor([RANK, 7])}
        if name in MASTERS:
            mine = (each for path, each in model.named_parameters() if "head" not in path)  # which not all tie
            clones = [nn.Parameter(parameter.detach().double()) for parameter in mine]
            objects["masters"] = torch.optim.SGD(clones, momentum=0.9)
        with CommDebugMode() as spoken:
            live = describe(objects, RANK, WORLD, rules, mesh)
        assert spoken.get_total_counts() == 0
        assert not any(isinstance(tensor, DTensor) for tensor in live.tensors)
        record = msgspec.msgpack.encode((live.state, [held(tensor) for tensor in live.tensors]))
        (folder / f"{name}.{RANK}").write_bytes(record)


def check_odd_cases() -> None:
    mesh = init_device_mesh("cpu", (WORLD,))
    partial = DTensor.from_local(torch.ones(4), mesh, [Partial()])
    refusal = ""
    try:
        describe({"sum": partial}, RANK, WORLD)
    except LayoutInvalid as error:
        refusal = str(error)
    assert refusal == "sum: Partial(sum) is a value that is still to be reduced: redistribute it first", refusal
    linear = fully_shard(nn.Sequential(nn.Linear(5, 3)))
    before = describe({"model": linear}, RANK, WORLD).state
    with torch.no_grad():
        linear(torch.ones(1, 5))  # leaves the root's parameters gathered
    assert not isinstance(linear[0].weight, DTensor)
    assert describe({"model": linear}, RANK, WORLD).state == before


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    store = dist.FileStore(str(out / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=WORLD, timeout=timedelta(seconds=300))
    main(out)
    check_odd_cases()
    dist.destroy_process_group()
