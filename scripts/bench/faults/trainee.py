"""What the campaign breaks: a small job of one of three shapes, with one fault at one rank and step.

The steps are as regular as a GPU's: each takes ``--step-seconds`` in each rank, mostly asleep, so that eight ranks fit
on two cores and a slow one is slow by what was asked. The collectives are real.

- *dp*: DDP, its buckets reduced while the backward pass goes on, and two figures summed up;
- *dp_tp*: pairs of ranks sum activations of each layer, DDP along the other dimension of the mesh;
- *dp_pp*: two stages pass micro-batches on and gradients back, the ranks of a stage average gradients.

Each rank appends ``step time generation`` to ``OUT/rank-N.log`` when it has done a step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from mischief import FAULTS, Mischief, SampleError
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain

WIDTH = 64
WIDTHS = (64, 96, 48, 80)
"""Of tensor-parallel layers: no two operations of a step are alike."""
LAYERS = 4
SAMPLES = 8
MICRO_BATCHES = 4

Compute = Callable[[float], None]
"""Does this share of the step's work."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="dp")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--width", type=int, default=WIDTH, help="of dp's layers")
    parser.add_argument("--fault", choices=["none", *FAULTS], default="none")
    parser.add_argument("--rank", type=int, default=1, help="whose fault it is")
    parser.add_argument("--at-step", type=int, default=40)
    parser.add_argument("--factor", type=float, default=1.5, help="of a slow rank")
    parser.add_argument("--seconds", type=float, default=10.0, help="of what ends by itself: evaluation, checkpoint")
    parser.add_argument("--cgroup", type=Path, help="with little of a processor, for the fault quota")
    return parser.parse_args()


class Shape:
    """One way to spread a model. ``step`` makes the gradients of one step."""

    tracked: nn.Module

    def step(self, compute: Compute, mischief: Mischief) -> None:
        raise NotImplementedError


class DataParallel(Shape):
    def __init__(self, width: int) -> None:
        self._width = width
        self.tracked = DDP(nn.Sequential(*[nn.Linear(width, width) for _ in range(LAYERS)]), bucket_cap_mb=0.03)

    def step(self, compute: Compute, mischief: Mischief) -> None:
        compute(0.5)
        loss = self.tracked(torch.randn(SAMPLES, self._width)).square().mean()
        mischief.reduce_both((loss.detach().clone(), dist.group.WORLD), (torch.ones(2), dist.group.WORLD))
        mischief.between_operations()
        compute(0.5)
        loss.backward()


class SplitLayers(nn.Module):
    """Layers whose outputs are summed up over the tensor-parallel group."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTHS[i - 1], WIDTHS[i]) for i in range(LAYERS))

    def forward(self, hidden: Tensor, add_up: Callable[[int, Tensor], None]) -> Tensor:
        for number, layer in enumerate(self.layers):
            hidden = torch.relu(layer(hidden))
            add_up(number, hidden.detach().clone())
        return hidden


class TensorParallel(Shape):
    def __init__(self, width: int) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
        self._dp, self._tp = mesh.get_group("dp"), mesh.get_group("tp")
        self.tracked = DDP(SplitLayers(), process_group=self._dp)

    def step(self, compute: Compute, mischief: Mischief) -> None:
        def add_up(number: int, hidden: Tensor) -> None:
            compute(1 / LAYERS)
            if number == LAYERS // 2:
                mischief.reduce_both((hidden, self._tp), (torch.ones(1), self._tp))
                mischief.between_operations()
            else:
                dist.all_reduce(hidden, group=self._tp)

        self.tracked(torch.randn(SAMPLES, WIDTHS[-1]), add_up).square().mean().backward()


class PipelineParallel(Shape):
    def __init__(self, width: int) -> None:
        mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "pp"))
        self._dp, self._pp = mesh.get_group("dp"), mesh.get_group("pp")
        self._stage = dist.get_rank(self._pp)
        self._peer = dist.get_global_rank(self._pp, 1 - self._stage)
        self.tracked = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])

    def step(self, compute: Compute, mischief: Mischief) -> None:
        outputs = []
        for number in range(MICRO_BATCHES):
            outputs.append(self._forward(compute))
            if number == MICRO_BATCHES // 2:
                mischief.between_operations()
        for given, output in outputs:
            self._backward(given, output, compute)
        gradients = [parameter.grad for parameter in self.tracked.parameters() if parameter.grad is not None]
        mischief.reduce_both((gradients[0], self._dp), (torch.ones(1), dist.group.WORLD))
        for gradient in gradients[1:]:
            dist.all_reduce(gradient, group=self._dp)
        for gradient in gradients:
            gradient /= dist.get_world_size(self._dp)

    def _forward(self, compute: Compute) -> tuple[Tensor, Tensor]:
        given = torch.randn(SAMPLES, WIDTH)
        if self._stage == 1:
            dist.recv(given, self._peer, group=self._pp)
        given.requires_grad_()
        compute(0.5 / MICRO_BATCHES)
        output = self.tracked(given)
        if self._stage == 0:
            dist.send(output.detach(), self._peer, group=self._pp)
        return given, output

    def _backward(self, given: Tensor, output: Tensor, compute: Compute) -> None:
        gradient = torch.ones_like(output)
        if self._stage == 0:
            dist.recv(gradient, self._peer, group=self._pp)
        compute(0.5 / MICRO_BATCHES)
        torch.autograd.backward([output], [gradient])
        if self._stage == 1:
            assert given.grad is not None
            dist.send(given.grad, self._peer, group=self._pp)


SHAPES: dict[str, Callable[[int], Shape]] = {
    "dp": DataParallel,
    "dp_tp": TensorParallel,
    "dp_pp": PipelineParallel,
}


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SHAPES[args.shape](args.width)
    parameters = list(shape.tracked.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    ctx.track(model=shape.tracked, optimizer=optimizer)
    mischief = Mischief(args, ctx.rank, ctx.generation)
    log = os.open(args.out / f"rank-{ctx.rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in ctx.steps(args.steps):
        mischief.begin(step)
        try:
            shape.step(lambda share: mischief.compute(args.step_seconds * share), mischief)
        except SampleError:  # a user's code that goes on as if nothing had been
            continue
        optimizer.step()
        optimizer.zero_grad()
        mischief.after_step(parameters)
        os.write(log, f"{step} {time.time():.6f} {ctx.generation}\n".encode())


if __name__ == "__main__":
    train()
