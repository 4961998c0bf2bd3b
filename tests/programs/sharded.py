"""A training of several models, each sharded in another way: FSDP2, with offload, HSDP, tensor parallel, both, DDP.

Four ranks. Weights are tied, shards are uneven or empty, evaluation leaves FSDP2 gathered, one model accumulates
gradients across commits. Every rank writes each step's losses, and at the end the hash of all that it holds.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from holding import add_argument, hold
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain

VOCABULARY, WIDTH, LENGTH = 7, 6, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 8)
        self.down = nn.Linear(8, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, 1)  # a weight of one row: on all ranks but one its shard is empty

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x)))) * torch.sigmoid(self.gate(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.seen += 1
        return self.head(self.blocks(self.embedding(ids)))


class Average:
    """A moving average of a model's parameters, sharded as they are; made at the first step."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.values = model, {}

    def update(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.values:
                    self.values[name].lerp_(parameter, 0.5)
                else:
                    self.values[name] = parameter.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state["values"]


class Part:
    """A model, its optimizer, and how often it steps."""

    def __init__(self, model: nn.Module, optimizer: type, every: int = 1, **settings: Any) -> None:
        self.model, self.every = model, every
        self.optimizer = optimizer(model.parameters(), **settings)

    def step(self, step: int, ids: Tensor) -> float:
        steps = (step + 1) % self.every == 0
        if self.every > 1:
            self.model.set_requires_gradient_sync(steps)
        logits = self.model(ids)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.roll(1).flatten())
        loss.backward()
        if steps:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())


def sharded(mesh: DeviceMesh | None = None, **options: Any) -> Net:
    model = Net()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def parallel(mesh: DeviceMesh) -> Net:
    model = Net()
    model.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    plan = {"blocks.*.norm": SequenceParallel(use_local_output=True)}  # its weights are replicated
    plan |= {"blocks.*.up": ColwiseParallel(), "blocks.*.down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan | {"embedding": RowwiseParallel(input_layouts=Replicate())})


def parts() -> dict[str, Part]:
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    line = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    adamw, sgd = torch.optim.AdamW, torch.optim.SGD
    both = parallel(square["inner"])
    fully_shard(both.blocks[0], mesh=square["outer"])
    fully_shard(both, mesh=square["outer"])
    return {
        "fsdp": Part(sharded(mp_policy=half, reshard_after_forward=False), adamw, lr=1e-2, foreach=True),
        "offload": Part(sharded(offload_policy=CPUOffloadPolicy(pin_memory=False)), adamw, lr=1e-2, fused=True),
        "hsdp": Part(sharded(square), sgd, lr=1e-1, momentum=0.9, foreach=True),
        "late": Part(sharded(), sgd, every=2, lr=1e-1, momentum=0.9),
        "tp": Part(parallel(line), adamw, lr=1e-2, foreach=False),
        "both": Part(both, adamw, lr=1e-2, foreach=False),
        "ddp": Part(DDP(Net()), adamw, lr=1e-2),
    }


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    add_argument(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = parts()
    average = Average(found["fsdp"].model)
    tracked = {name: part.model for name, part in found.items()}
    tracked |= {f"{name}_optimizer": part.optimizer for name, part in found.items()}
    ctx.track(average=average, **tracked)
    log = args.out / f"rank-{ctx.rank}.jsonl"
    for step in ctx.steps(args.steps):
        hold(args, step)
        generator = torch.Generator().manual_seed(1000 * step + ctx.rank)
        own = torch.randint(VOCABULARY, (2, LENGTH), generator=generator)
        losses = {}
        for name, part in found.items():
            ids = own.clone()
            if name in ("tp", "both"):  # ranks that share a batch
                dist.broadcast(ids, 0)
            losses[name] = part.step(step, ids).hex()
        average.update()
        with torch.no_grad():
            found["fsdp"].model(own)  # leaves its root gathered
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "loss": losses, "samples": own.tolist()}) + "\n")
    finish(args, ctx, tracked | {"average": average})


def finish(args: argparse.Namespace, ctx: ftrain.Context, tracked: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    for path, tensor in tensors({name: each.state_dict() for name, each in tracked.items()}):
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        digest.update(path.encode() + local.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    part = args.out / f"end-{ctx.rank}.part"
    part.write_text(digest.hexdigest())
    os.replace(part, args.out / f"end-{ctx.rank}")


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{path}.{key}")


if __name__ == "__main__":
    train()
