"""Light steps and a heavy state: each rank has weights of its own, like a stage of a pipeline, and all of them change.

``--hold``: see `holding`. ``--grow-at``: a list that is tracked gets a large tensor after that step. ``--pause``: a
rank's capture of a step stands still when part of it is published, until there is a file ``go-on``.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from holding import add_argument, hold, wait_until_let
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

import ftrain
from ftrain_snapshot.lane import Region


class Notes:
    """Tensors that come to be in the course of training."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": list(self.tensors)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tensors = list(state["tensors"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--mib", type=int, default=16, help="each rank's own weights")
    add_argument(parser)
    parser.add_argument("--grow-at", type=int, default=-1)
    parser.add_argument("--grow-mib", type=int, default=64)
    parser.add_argument("--pause", type=int, nargs=2, metavar=("RANK", "STEP"), default=(-1, -1))
    return parser.parse_args()


def pause_within(version: int, marker: Path) -> None:
    """Have the capture of a version wait for ``marker`` behind the first chunks that it publishes."""
    publish = Region.publish

    def held(region: Region, published: int, copied_bytes: int) -> None:
        publish(region, published, copied_bytes)
        _, header = region.header()
        if header is not None and header.snapshot.version == version and published < header.chunks:
            wait_until_let(marker)

    Region.publish = held  # type: ignore[method-assign]


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DDP(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1 + ctx.rank)
    weights = nn.Parameter(torch.randn(args.mib << 18))
    own = torch.optim.SGD([weights], lr=0.1)
    if args.pause[0] == ctx.rank:
        pause_within(args.pause[1], args.out / "go-on")
    notes = Notes()
    ctx.track(model=model, optimizer=optimizer, weights=nn.ParameterList([weights]), own=own, notes=notes)
    log = args.out / f"rank-{ctx.rank}.jsonl"
    for step in ctx.steps(args.steps):
        hold(args, step)
        loss = model(torch.randn(8, 16)).square().mean()
        loss.backward()
        weights.grad = weights.detach() * loss.item()
        for each in (optimizer, own):
            each.step()
            each.zero_grad()
        if step == args.grow_at:
            notes.tensors.append(torch.full((args.grow_mib << 18,), float(ctx.rank)))
        with log.open("a") as file:
            file.write(json.dumps({"generation": ctx.generation, "step": step, "loss": loss.item().hex()}) + "\n")
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for tensor in (*model.state_dict().values(), weights.detach(), *notes.tensors):
        digest.update(tensor.contiguous().numpy().tobytes())
    part = args.out / f"end-{ctx.rank}.part"
    part.write_text(digest.hexdigest())
    os.replace(part, args.out / f"end-{ctx.rank}")


if __name__ == "__main__":
    train()
