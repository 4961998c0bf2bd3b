"""What workers will import, imported once in the zygote that forks them.

First what every script needs, torch before all: the first workers are forked when that is done. `LATER`, which is
another half of it, the zygote imports while those start: what comes after the first fault or in a lost rank's place has
all of it. (The first optimizer, and the first ``DDP()``, import torch._dynamo, a hidden second or more.) The zygote
must stay at one thread, so nothing here runs a tensor operation, opens a store or touches CUDA. While it imports, the
recorder's library is built if this machine does not have it yet (docs/recorder.md).
"""

import os

# OpenBLAS starts its threads when numpy is imported; a forked child would inherit locks without their owners.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import importlib
import importlib.util

from ftrain.comm import library

MODULES = (
    "encodings.idna",  # what connecting to a named host takes along
    "torch",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "numpy",
    "msgspec",
    "xxhash",
    "ftrain.comm.timeout",
    "ftrain.context",
    "ftrain.sampler",
    "ftrain.store",
    "ftrain_snapshot.client",
    "ftrain_snapshot.lane",
)
LATER = (
    "sympy",
    "torch.fx.experimental.symbolic_shapes",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "ftrain.durable.attempt",
    "ftrain.durable.reader",
    "ftrain.durable.source",
    "ftrain.reshard.crossing",
    *(("fsspec.implementations.local",) if importlib.util.find_spec("fsspec") is not None else ()),
)
"""Not in one go: between two of them the zygote serves. The last one, an extra, writes durable checkpoints."""

_building = library.start_building()
for _name in MODULES:
    importlib.import_module(_name)
if _building is not None:
    library.finish_building(_building)
importlib.import_module("ftrain.comm.worker").prepare()
