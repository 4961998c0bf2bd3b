"""What elastic jobs are tested with: DDP over global batches that any number of ranks computes in micro-batches.

Each rank appends a line a step: the step, the global loss to the last bit, and which samples it trained on. At the end
it writes the hash of its parameters. ``--pace`` makes steps last, so that there is time for nodes to come and go, until
there is a file ``quick`` in the output folder. Beside the model there is a table that nobody trains, said to be the
same on all ranks; with ``--flip-after`` a bit of rank 2's flips after that step, once.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from holding import add_argument, hold
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset

import ftrain

SAMPLES, BATCH, MICRO = 240, 24, 3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds that a step takes at least")
    parser.add_argument("--flip-after", type=int, default=-1, help="a bit of rank 2's table flips after this step")
    add_argument(parser)
    return parser.parse_args()


options = parse()


@ftrain.resilient
def train(ctx: ftrain.Context) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 8)
    data = TensorDataset(x, x.square().sum(1, keepdim=True))
    model = DDP(nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler = ftrain.ElasticSampler(SAMPLES, global_batch=BATCH, micro_batch=MICRO, seed=0)
    loader = DataLoader(data, batch_sampler=sampler)
    table = nn.Embedding(8, 4)
    ctx.layout({"table.*": "replicate"})
    ctx.track(model=model, optimizer=optimizer, sampler=sampler, table=table)
    with (options.out / f"rank-{ctx.rank}.jsonl").open("a", buffering=1) as log:
        for step in ctx.steps(options.steps):
            hold(options, step)
            began, seen = time.monotonic(), []
            for micro in ctx.microbatches(loader):
                with ctx.rng("dropout"):
                    inputs, targets = micro.data
                    noisy = nn.functional.dropout(inputs, 0.1)
                loss = nn.functional.mse_loss(model(noisy), targets)
                ctx.scale_loss(loss, micro.samples).backward()
                seen += list(micro.indices)
            optimizer.step()
            optimizer.zero_grad()
            if (ctx.rank, ctx.generation, step) == (2, 1, options.flip_after):
                table.weight.data.view(torch.int32).view(-1)[5] ^= 1
            total = float(ctx.global_loss())
            line = {"generation": ctx.generation, "step": step, "loss": total.hex(), "seen": seen}
            log.write(json.dumps(line) + "\n")
            if not (options.out / "quick").exists():
                time.sleep(max(0.0, began + options.pace - time.monotonic()))
    found = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    (options.out / f"end-{ctx.rank}").write_text(hashlib.sha256(found).hexdigest())


if __name__ == "__main__":
    train()
