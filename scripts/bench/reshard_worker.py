"""The training that scripts/bench/reshard.py shrinks and grows: FSDP2, under ftrain or under torchrun.

    reshard_worker.py ftrain|torchrun FOLDER --mib N --steps N [--dense]

The state, parameters and AdamW's, is as large as is asked for; a global batch is the same whatever the world. Layers
take turns, as experts do: the first step goes through all, each later one through ACTIVE_LAYERS of them, so that what
is measured is how the state comes back, and not how long gathering all of it takes on this machine; ``--dense``: each
step goes through all. Weights are made only where none come back. Each rank appends ``step time run loss`` to
FOLDER/rank-N when a step is computed, the generation and the samples that it has trained on to FOLDER/samples-N, and
what reading its state took to FOLDER/read-N. Steps take their time while there is a FOLDER/slow, those of the last half
ten times as much, so that no job ends before all has been done to it that is to be done. Under torchrun the state comes
back from the newest DCP checkpoint that is complete, written at each step. ftrain is imported under ftrain only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    import ftrain

GLOBAL_BATCH, MICRO_BATCH, SAMPLES = 24, 2, 960
ACTIVE_LAYERS = 4
STATES = 3
"""AdamW keeps two tensors beside each parameter."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=["ftrain", "torchrun"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mib", type=int, required=True, help="of all state, over all ranks")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dense", action="store_true", help="each step goes through all layers")
    parser.add_argument("--micro", action="store_true", help="by micro-batches that do not depend on the world")
    parser.add_argument(
        "--pause-seconds", type=float, default=0.0, help="a step takes at least so long while FOLDER/slow is there"
    )
    return parser.parse_args()


class Layers(nn.Module):
    """Linear layers, of which each step goes through some."""

    def __init__(self, width: int, count: int, active: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))
        self._active = active

    def forward(self, data: Tensor, step: int) -> Tensor:
        count = len(self.all)
        used = count if step == 0 else self._active  # the first step has the optimizer make all its state
        for number in range(used):
            data = self.all[(step * used + number) % count](data)
        return data


class Training:
    """A stack of linear layers, its optimizer and its data."""

    def __init__(self, args: argparse.Namespace, rank: int, world: int, generation: int, *, resumes: bool) -> None:
        """``resumes``: its weights come back from where they were kept, and are not made."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        width = 64 if args.mib < 4 else 512 if args.mib < 512 else 2048
        layers = max(2, (args.mib << 20) // (STATES * 4 * width * width))
        with torch.device("meta"):  # no rank makes more than its own part
            self.model = Layers(width, layers, layers if args.dense else min(layers, ACTIVE_LAYERS))
        mesh = init_device_mesh("cpu", (world,))
        for layer in (*self.model.all, self.model):
            fully_shard(layer, mesh=mesh)
        self.model.to_empty(device="cpu")
        own, bound = torch.Generator().manual_seed(rank), width**-0.5
        for parameter in self.model.parameters():
            assert isinstance(parameter.data, DTensor)
            if not resumes:
                parameter.data.to_local().uniform_(-bound, bound, generator=own)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.data = torch.randn(SAMPLES, width, generator=torch.Generator().manual_seed(1))
        self._folder, self._rank, self._generation = args.folder, rank, generation
        self._lines = os.open(args.folder / f"rank-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._samples = os.open(args.folder / f"samples-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def loss(self, data: Tensor, step: int) -> Tensor:
        """Mean over the samples."""
        error: Tensor = self.model(data, step) - data.flip(1)
        return error.square().mean()

    def update(self) -> None:
        """One optimizer step."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def note(self, step: int, loss: float, samples: list[int]) -> None:
        """Step ``step`` is done."""
        os.write(self._samples, f"{step} {self._generation} {' '.join(map(str, samples))}\n".encode())
        os.write(self._lines, f"{step} {time.time()} {os.getpid()}.{self._generation} {loss.hex()}\n".encode())

    def note_read(self, step_seconds: float, seconds: float, processor_seconds: float, peak_bytes: int) -> None:
        """What the first step took, and reading before it, beside copies of the same bytes by all ranks at once: into
        warm memory, and into fresh memory, to which most of what is read goes."""
        own = [p.to_local() for p in self.model.parameters()]  # type: ignore[attr-defined]
        own += [v.to_local() for s in self.optimizer.state.values() for v in s.values() if hasattr(v, "to_local")]
        targets = [torch.empty_like(each) for each in own]
        copies = []
        for _ in range(3):
            dist.barrier()
            began = time.perf_counter()
            for target, source in zip(targets, own, strict=True):
                target.copy_(source)
            copies.append(time.perf_counter() - began)
        entry = {
            "world": dist.get_world_size(),
            "read_seconds": seconds,
            "step_seconds": step_seconds,
            "processor_seconds": processor_seconds,
            "copy_seconds": min(copies),
            "fresh_copy_seconds": copies[0],
            "peak_bytes": peak_bytes,
            "state_bytes": sum(each.nbytes for each in own),
        }
        with (self._folder / f"read-{self._rank}").open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Peak:
    """Most memory of this process that was in use for a moment only, from `__init__` to `taken`."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))

    def taken(self) -> int:
        """In bytes, beyond what is in use now."""
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {
            line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmHWM", "VmRSS"))
        }
        return sizes["VmHWM"] - sizes["VmRSS"]


def under_ftrain(args: argparse.Namespace) -> None:
    """As a user would: each rank its share of the global batch, at once or by micro-batches."""
    from torch.utils.data import DataLoader

    import ftrain

    @ftrain.resilient
    def train(ctx: ftrain.Context) -> None:
        training = Training(args, ctx.rank, ctx.world_size, ctx.generation, resumes=ctx.start_step > 0)
        micro_batch = MICRO_BATCH if args.micro else None
        sampler = ftrain.ElasticSampler(SAMPLES, global_batch=GLOBAL_BATCH, micro_batch=micro_batch, seed=0)
        loader: Any = DataLoader(training.data, batch_sampler=sampler)  # type: ignore[arg-type]
        dist.barrier()
        peak, began, spent = Peak(), time.perf_counter(), time.process_time()
        ctx.track(model=training.model, optimizer=training.optimizer, sampler=sampler)
        taken = time.perf_counter() - began, time.process_time() - spent, peak.taken()
        read = taken if ctx.generation > 1 else None
        batches, slow = iter(sampler), args.folder / "slow"
        for step in ctx.steps(args.steps):
            began = time.monotonic()
            until = began + args.pause_seconds * slow.exists() * (10 if 2 * step > args.steps else 1)
            samples: list[int] = []
            if args.micro:
                for micro in ctx.microbatches(loader):
                    ctx.scale_loss(training.loss(micro.data, step), micro.samples).backward()  # type: ignore[no-untyped-call]
                    samples += micro.indices
                mean = ctx.global_loss()
            else:
                samples = next(batches)
                loss = training.loss(training.data[samples], step)
                ctx.scale_loss(loss, len(samples)).backward()  # type: ignore[no-untyped-call]
                mean = loss.item()
            training.update()
            time.sleep(max(0.0, until - time.monotonic()))
            training.note(step, mean, samples)
            if read is not None:  # only now: its copies take their time, too
                training.note_read(time.monotonic() - began, *read)
                read = None

    train()


def under_torchrun(args: argparse.Namespace) -> None:
    """As a careful user would: equal parts of each batch, a sharded checkpoint at every step, the last two kept."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    saved = sorted(int(path.name[5:]) for path in args.folder.glob("done-*"))
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    training = Training(args, rank, world, restarts, resumes=bool(saved))
    read: tuple[float, float, int] | None = None
    if saved:
        dist.barrier()
        peak, began, spent = Peak(), time.perf_counter(), time.process_time()
        model, optimizer = get_state_dict(training.model, training.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        load(state, checkpoint_id=args.folder / f"step-{saved[-1]}")
        set_state_dict(
            training.model, training.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        read = time.perf_counter() - began, time.process_time() - spent, peak.taken()
    for step in range(saved[-1] + 1 if saved else 0, args.steps):
        first = step * GLOBAL_BATCH % SAMPLES
        own = list(range(first, first + GLOBAL_BATCH))[rank::world]
        step_began = time.monotonic()
        loss = training.loss(training.data[own], step)
        loss.backward()  # type: ignore[no-untyped-call]
        training.update()
        training.note(step, loss.item(), own)
        if read is not None:
            training.note_read(time.monotonic() - step_began, *read)
            read = None
        model, optimizer = get_state_dict(training.model, training.optimizer)
        began = time.perf_counter()
        save({"model": model, "optimizer": optimizer}, checkpoint_id=args.folder / f"step-{step}")
        with (args.folder / f"save-{rank}").open("a") as file:
            file.write(f"{time.perf_counter() - began}\n")
        if rank == 0:
            (args.folder / f"done-{step}").touch()
            for old in (step - 2,):
                (args.folder / f"done-{old}").unlink(missing_ok=True)
                shutil.rmtree(args.folder / f"step-{old}", ignore_errors=True)


if __name__ == "__main__":
    chosen = parse()
    {"ftrain": under_ftrain, "torchrun": under_torchrun}[chosen.side](chosen)
