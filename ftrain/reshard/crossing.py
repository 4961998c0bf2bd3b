"""A generation that starts from the snapshot of another world, as one of its ranks sees it.

At each `Context.track` the objects' part of the snapshot is read; once all is tracked that the snapshot holds, the
ranks prove to each other that they have it (certificate.py). Only then is a step taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ftrain.arena import RESTORE_TIMEOUT_SECONDS, Arena
from ftrain.durable.source import NodeSource
from ftrain.environment import JobEnvironment, WorkerEnvironment
from ftrain.link import LinkMessage
from ftrain.reshard.certificate import certify
from ftrain.reshard.comparing import compare_replicas
from ftrain.reshard.describer import Describer
from ftrain.reshard.origin import OldWorld
from ftrain.reshard.restoring import Restoring
from ftrain.reshard.storage import SnapshotReader
from ftrain.restore import exchange_device


class Crossing:
    """One rank's. All methods are called by all ranks, in the same order."""

    def __init__(self, environment: WorkerEnvironment, job: JobEnvironment, arena: Arena, describer: Describer) -> None:
        """Read what the old ranks said. Raises StateMismatch, StateUncovered, SnapshotIncomplete, TimeoutError."""
        assert job.origin is not None
        self._describer, self._version = describer, job.origin.snapshot.version
        arena.client.wait_restored(job.generation, RESTORE_TIMEOUT_SECONDS)  # the daemon knows of the origin by then
        source = NodeSource(job.node_dir, job.origin.position, job.origin.snapshot, arena.client, kept=True)
        self.old = OldWorld(job.origin, environment.local_world_size, source)
        compare_replicas(self.old.world, source, environment.local_world_size, environment.rank, environment.world_size)
        self._restoring = Restoring(self.old, describer, environment.rank, environment.world_size)
        self._certified = False
        self._rank = environment.rank

    def restore(self, objects: Mapping[str, Any], every: Mapping[str, Any]) -> dict[str, Any]:
        """Put back the state of ``objects``; what the rest of the start needs: as `ftrain.restore.read_state`."""
        self._restoring.restore(objects, every)
        return {"objects": {}, "gradients": {}, "rng": self._restoring.rng(), "buckets": self._restoring.buckets()}

    def reader(self) -> SnapshotReader:
        """The same reads for DCP."""
        return SnapshotReader(self.old, self._rank)

    def certify(
        self, every: Mapping[str, Any], tell: Callable[[LinkMessage], object], *, is_last: bool = False
    ) -> None:
        """Have the state certified if every rank has tracked all; ``is_last``: anyway. Raises NotCertified."""
        if self._certified or not (is_last or self._all_have(self._restoring.names <= every.keys())):
            return
        self._certified = True
        live = self._describer.describe(every)
        certified = certify(live, every, self._restoring.names, self.old.world.states, self._version)
        if certified is not None:
            tell(certified)

    def _all_have(self, mine: bool) -> bool:
        flag = torch.tensor([int(mine)], device=exchange_device())
        dist.all_reduce(flag, dist.ReduceOp.MIN)
        return bool(flag.item())
