"""A script written for torchrun: forms a process group at the address that it is given, and sums up ones.

With ``--fail N`` rank 1 fails in its first N lives, and says so to `torch.distributed.elastic`.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


@record
def main() -> None:
    """Write the sum down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init-method", default="env://")
    parser.add_argument("--fail", type=int, default=0)
    args = parser.parse_args()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=args.init_method, rank=rank, world_size=world)
    ones = torch.ones(1)
    dist.all_reduce(ones)
    if rank == 1 and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < args.fail:
        raise ValueError("rank one had a bad day")
    dist.barrier()
    (args.out / f"end-{rank}").write_text(f"{dist.is_torchelastic_launched()} {ones.item():g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
