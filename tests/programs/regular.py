"""Training as regular as a GPU's: each step is a sleep and two sums of all ranks. Options make it less so.

An evaluation by rank 0 alone, with the others at a barrier; a checkpoint in all ranks, longer in some; a rank that is
slower than the others; one that leaves out an operation, each time it gets there.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from holding import add_argument, hold
from torch import nn

import ftrain

STEP_SECONDS = 0.03
SLOW_FACTOR = 2.0
EVALUATION_SECONDS = 2.0
CHECKPOINT_SECONDS = 1.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    add_argument(parser)
    parser.add_argument("--evaluate-at", type=int, default=-1)
    parser.add_argument("--checkpoint-at", type=int, default=-1)
    parser.add_argument("--slow-from", type=int, help="rank 3, until the end")
    parser.add_argument("--skip-at", type=int, default=-1, help="rank 2, in each generation")
    return parser.parse_args()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    args = parse()
    torch.set_num_threads(1)
    model = nn.Linear(8, 8)
    ctx.track(model=model)
    for step in ctx.steps(args.steps):
        hold(args, step)
        if step == args.evaluate_at:
            if ctx.rank == 0:
                time.sleep(EVALUATION_SECONDS)
            dist.barrier()
        if step == args.checkpoint_at:
            time.sleep(CHECKPOINT_SECONDS * (1 + 0.3 * ctx.rank))
        time.sleep(STEP_SECONDS)
        if ctx.rank == 3 and args.slow_from is not None and step >= args.slow_from:
            time.sleep(STEP_SECONDS * (SLOW_FACTOR - 1))
        if ctx.rank == 2 and step == args.skip_at:
            (args.out / f"skipped-{ctx.generation}").touch()
        else:
            dist.all_reduce(torch.ones(1))
        dist.all_reduce(torch.ones(64))
    (args.out / f"end-{ctx.rank}").write_text(f"generation {ctx.generation}")


if __name__ == "__main__":
    train()
