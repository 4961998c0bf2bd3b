"""A script written for torchrun that knows nothing of ftrain: it resumes from its own checkpoint, and fails once."""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

STEPS = 5


@record
def main() -> None:
    """Sum up ranks; rank 1 raises in its first life."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank, restarts = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    print(f"to stdout {rank}")
    print(f"to stderr {rank}", file=sys.stderr)
    checkpoint = args.out / "checkpoint.pt"
    start, total = torch.load(checkpoint) if checkpoint.exists() else (0, torch.zeros(1))
    for step in range(start, STEPS):
        part = torch.full((1,), float(rank + step))
        dist.all_reduce(part)
        total += part
        if rank == 1 and restarts == 0 and step == 2:
            raise ValueError("rank one had a bad day")
        if rank == 0:
            torch.save((step + 1, total), args.out / "checkpoint.new")
            (args.out / "checkpoint.new").rename(checkpoint)
        dist.barrier()
    names = ("ROLE_NAME", "GROUP_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RUN_ID")
    told = {name: os.environ[name] for name in names}
    (args.out / f"end-{rank}").write_text(json.dumps({"total": total.item(), "restarts": restarts, **told}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
