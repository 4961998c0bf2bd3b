"""A script that knows nothing of ftrain: three steps, then it tells what a program can see of how it was started.

At its end it looks into its own ring, which a test could not do in time: it goes with the job.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ftrain.comm.ring import RingReader, ring_path


class OfMain:
    """What is pickled by the name of its module."""


def ring() -> dict[str, object]:
    """What has been recorded; empty: nothing."""
    path = ring_path(os.environ["FTRAIN_NODE_DIR"], int(os.environ["LOCAL_RANK"]))
    if not path.exists():
        return {}
    reader = RingReader(path)
    live = reader.live()
    return {
        "identity": reader.identity._asdict(),
        "operations": live.head,
        "steps": reader.marks(0, live.marks)["step"].tolist(),
        "members": [group.members for group in reader.groups(live.communicators)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD([torch.ones(1)], lr=0.1)]
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert type(pickle.loads(pickle.dumps(OfMain()))) is OfMain
    found = {
        "argv": sys.argv,
        "path": sys.path,
        "main": sys.modules["__main__"].__file__,
        "pythonpath": os.environ.get("PYTHONPATH"),
        "pid": os.getpid(),
        "ring": ring(),
    }
    (arguments.out / f"found.{dist.get_rank()}").write_text(json.dumps(found))
    # DDP's reducer, freed after its group, may wait with the GIL for a thread of gloo's that waits for the GIL.
    del model, optimizers, optimizer
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
