"""Everything a worker will import, imported once in the zygote that forks the workers.

The first ``DDP()`` imports torch._dynamo, a hidden second or more; the other names are what training scripts use.
The zygote must stay at one thread, so nothing here runs a tensor operation, opens a store or touches CUDA. While
it imports, the recorder's library is built if this machine does not have it yet (docs/recorder.md).
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
    "torch._dynamo",
    "torch.distributed",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.parallel",
    "torch.optim",
    "torch.utils.data",
    "numpy",
    "msgspec",
    "xxhash",
    "ftrain.comm.timeout",
    "ftrain.context",
    "ftrain.durable.attempt",
    "ftrain.durable.reader",
    "ftrain.durable.source",
    "ftrain.reshard.crossing",
    "ftrain.sampler",
    "ftrain.store",
    "ftrain_snapshot.client",
    "ftrain_snapshot.lane",
)

_building = library.start_building()
for _name in MODULES:
    importlib.import_module(_name)
if importlib.util.find_spec("fsspec") is not None:  # an extra: what writes durable checkpoints
    importlib.import_module("fsspec.implementations.local")
if _building is not None:
    library.finish_building(_building)
importlib.import_module("ftrain.comm.worker").prepare()
