"""A program for test_exact.py: ``exact_ranks.py FOLDER`` trains at changing world sizes and tells what came of it.

One process with torch forks all ranks. Between two worlds the whole state goes through a file; `result.pt` holds, by
name, what rank 0 of each training ended with.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else every rank would import it when it makes its optimizer
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader

from ftrain import ElasticSampler, ExactMisuse, KeyedRandom, derive_seed
from ftrain.exact.loop import Exact

WAIT_SECONDS = 300.0
WHOLE = StateDictOptions(full_state_dict=True)
DATA = torch.randint(0, 32, (203, 9), generator=torch.Generator().manual_seed(7))
CHANGES = [(4, 1), (3, 3), (4, 4)]
"""World size, and the step at which it ends."""
KINDS = ("ddp", "ddp-bfloat16", "fsdp", "fsdp-bfloat16")


class Net(nn.Module):
    """Predicts the next token; its parameters' sizes do not divide by the world's."""

    def __init__(self, dtype: torch.dtype = torch.float32, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(32, 24, dtype=dtype)
        self.up, self.down = nn.Linear(24, 50, dtype=dtype), nn.Linear(50, 24, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(24, 32, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        return self.head(x + self.dropout(self.down(F.gelu(self.up(x)))))


def wrap(kind: str, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    net = Net(torch.bfloat16 if kind == "ddp-bfloat16" else torch.float32, dropout)
    if kind.startswith("ddp"):
        return DDP(net)
    half = torch.bfloat16
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half) if kind == "fsdp-bfloat16" else None
    dims = {"replicas": dist.get_world_size(), "shards": 1} if kind == "hsdp" else {"shards": dist.get_world_size()}
    mesh = init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))
    for part in (net.up, net.down, net):
        fully_shard(part, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())
    return net


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(rows[:, :-1]).float().flatten(0, 1), rows[:, 1:].flatten())


def train(kind: str, start: int, stop: int, source: Path | None, target: Path) -> None:
    """Bit-exact: steps ``start`` to ``stop``, from a state to a state."""
    model = wrap(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler = ElasticSampler(len(DATA), global_batch=21, micro_batch=2, seed=3)
    losses, seen = [], []
    if source is not None:
        state = torch.load(source)
        set_model_state_dict(model, state["model"], options=WHOLE)
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=WHOLE)
        sampler.load_state_dict(state["sampler"])
        losses, seen = state["losses"], state["seen"]
    exact = Exact({"model": model, "sampler": sampler}, deterministic=True)
    loader = DataLoader(DATA, batch_sampler=sampler)
    mine: list[int] = []
    for step in range(start, stop):
        for micro in exact.microbatches(loader):
            mine += micro.indices
            with KeyedRandom(derive_seed(5, step, micro.number)):
                loss = loss_of(model, micro.data)
            exact.scale_loss(loss, micro.samples, step).backward()
        losses.append((exact.global_loss(), exact.clip_grad_norm(0.25)))
        optimizer.step()
        optimizer.zero_grad()
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    result = {
        "model": get_model_state_dict(model, options=WHOLE),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=WHOLE),
        "sampler": sampler.state_dict(),
        "losses": losses,
        "seen": seen + [index for indices in everyones for index in indices],
    }
    if dist.get_rank() == 0:
        torch.save(result, target)


def gradients(target: Path) -> None:
    """The ordinary mode: gradients and loss of one global batch, with more and with fewer micro-batches than ranks."""
    found: dict[str, Any] = {}
    for kind in ("ddp", "fsdp", "hsdp"):
        for global_batch in (11, 4):
            model = wrap(kind, dropout=0.0)
            sampler = ElasticSampler(len(DATA), global_batch=global_batch, micro_batch=2)
            exact = Exact({"model": model, "sampler": sampler}, deterministic=False)
            for micro in exact.microbatches(DataLoader(DATA, batch_sampler=sampler)):
                exact.scale_loss(loss_of(model, micro.data), micro.samples, 0).backward()
            found[f"{kind} {global_batch}"] = whole_gradients(model)
            found[f"loss of {kind} {global_batch}"] = exact.global_loss()
    found["scaled"], found["refused"] = scaled()
    found["misuse"] = {way: misused(way) for way in ("no_sync", "no reduction", "a part")}
    if dist.get_rank() == 0:
        torch.save(found, target)


def scaled() -> tuple[list[torch.Tensor], str]:
    """`scale_loss` alone: uneven shares, each in two backward passes; then what is said without no_sync."""
    model = wrap("ddp", dropout=0.0)
    sampler = ElasticSampler(len(DATA), global_batch=11)
    exact = Exact({"model": model, "sampler": sampler}, deterministic=False)
    rows = DATA[sampler.batch(0)]
    with model.no_sync():
        exact.scale_loss(loss_of(model, rows[:1]), 1, 0).backward()
    exact.scale_loss(loss_of(model, rows[1:]), len(rows) - 1, 0).backward()
    found = whole_gradients(model)
    try:
        exact.scale_loss(loss_of(model, rows), len(rows), 0).backward()
    except ExactMisuse as error:
        return found, str(error)
    return found, "nothing"


def norms(target: Path) -> None:
    """By kind: the norm that is clipped, that of the whole gradients before, and after."""
    found = {}
    for kind in ("fsdp", "hsdp", "fsdp-tp"):
        model, place = wrap_in_two() if kind == "fsdp-tp" else (wrap(kind, dropout=0.0), {})
        sampler = ElasticSampler(len(DATA), global_batch=11, micro_batch=2, **place)
        exact = Exact({"model": model, "sampler": sampler}, deterministic=False)
        for micro in exact.microbatches(DataLoader(DATA, batch_sampler=sampler)):
            exact.scale_loss(loss_of(model, micro.data), micro.samples, 0).backward()
        before = norm_of(whole_gradients(model))
        found[kind] = exact.clip_grad_norm(0.25), before, norm_of(whole_gradients(model))
    if dist.get_rank() == 0:
        torch.save(found, target)


def wrap_in_two() -> tuple[nn.Module, dict[str, int]]:
    """FSDP2 x tensor parallel; and whose batches this rank computes."""
    torch.manual_seed(0)
    net, mesh = Net(dropout=0.0), init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    parallelize_module(net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(net, mesh=mesh["dp"])
    return net, {"rank": mesh["dp"].get_local_rank(), "world_size": 2}


def norm_of(gradients: list[torch.Tensor]) -> float:
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt().item()


class Halves(nn.Module):
    """Uses one of its layers only where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(9, 9), nn.Linear(9, 9)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.one(x) + self.other(x) if both else self.one(x)


def misused(way: str) -> str:
    """What is said where gradients are kept back from the sum, or are not of the same parameters."""
    model = DDP(Halves()) if way == "no_sync" else fully_shard(Halves())
    if way == "no reduction":
        model.set_requires_gradient_sync(False)
    sampler = ElasticSampler(len(DATA), global_batch=12, micro_batch=2)
    exact = Exact({"model": model, "sampler": sampler}, deterministic=way != "no_sync")
    try:
        for turn, micro in enumerate(exact.microbatches(DataLoader(DATA, batch_sampler=sampler))):
            with model.no_sync() if way == "no_sync" else nullcontext():
                both = way != "a part" or turn == 0
                exact.scale_loss(model(micro.data.float(), both).square().mean(), micro.samples, 0).backward()
    except ExactMisuse as error:
        return str(error)
    return "nothing"


def whole_gradients(model: nn.Module) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if hasattr(grad, "full_tensor") else grad.clone() for grad in grads]


def in_world(world: int, folder: Path, function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in as many forked ranks."""
    store = folder / f"store-{os.urandom(4).hex()}"
    pids = [fork_rank(rank, world, store, function, arguments) for rank in range(world)]
    deadline = time.monotonic() + WAIT_SECONDS
    while pids:
        pid, status = os.waitpid(pids[0], os.WNOHANG)
        if not pid:
            assert time.monotonic() < deadline, "ranks are stuck"
            time.sleep(0.005)
            continue
        pids.remove(pid)
        assert status == 0, f"a rank of {world} failed in {function.__name__}{arguments}"


def fork_rank(rank: int, world: int, store: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        file_store = dist.FileStore(str(store), world)
        dist.init_process_group("gloo", store=file_store, rank=rank, world_size=world, timeout=timedelta(seconds=300))
        function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def stretch(folder: Path, start: int, stop: int) -> None:
    """What is trained at one world size: all kinds that change go on, and at first those that do not to their end."""
    for kind in KINDS:
        if start == 0:
            train(kind, 0, CHANGES[-1][1], None, folder / f"{kind}.pt")
        changed = folder / f"{kind}-changed.pt"
        train(kind, start, stop, changed if start else None, changed)


def main(folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    gc.freeze()  # ranks look for DDP among all objects, and would copy every page on their way
    in_world(3, folder, gradients, folder / "gradients.pt")
    in_world(4, folder, norms, folder / "norms.pt")
    start = 0
    for world, stop in CHANGES:
        in_world(world, folder, stretch, folder, start, stop)
        start = stop
    ends = {kind: tuple(torch.load(folder / f"{kind}{end}.pt") for end in ("", "-changed")) for kind in KINDS}
    once = {name: torch.load(folder / f"{name}.pt") for name in ("gradients", "norms")}
    torch.save({**once, **ends}, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
