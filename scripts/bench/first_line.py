"""A script of which scripts/bench/recovery.py asks when it gets where: ``first_line.py FOLDER``.

It knows nothing of ftrain. Each rank notes when its first line ran, when torch was imported, and when a model was in
DDP, whose first use imports as much again.
"""

import time

STARTED = time.time()

import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

IMPORTED = time.time()

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    (Path(sys.argv[1]) / f"first-{os.environ['RANK']}").write_text(f"{STARTED} {IMPORTED} {time.time()}\n")
    torch.distributed.destroy_process_group()
