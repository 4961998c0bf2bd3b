"""A generation that starts from the snapshot of another world, or its checkpoint, as one of its ranks sees it.

At each `Context.track` the objects' part of the snapshot is read; once all is tracked that the snapshot holds, the
ranks prove to each other that they have it (certificate.py). Only then is a step taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ftrain.arena import RESTORE_TIMEOUT_SECONDS, Arena
from ftrain.durable.reader import Checkpoint
from ftrain.durable.source import NodeSource
from ftrain.durable.units import CheckpointSource
from ftrain.environment import JobEnvironment, WorkerEnvironment
from ftrain.errors import StateMismatch
from ftrain.exchange import exchange_device
from ftrain.link import LinkMessage
from ftrain.logical.errors import LayoutInvalid
from ftrain.reading import read_outline
from ftrain.reshard.certificate import NotCertified, certify
from ftrain.reshard.comparing import compare_replicas
from ftrain.reshard.describer import Describer
from ftrain.reshard.origin import OldWorld
from ftrain.reshard.restoring import Restoring
from ftrain.reshard.storage import SnapshotReader


def other_world(
    environment: WorkerEnvironment,
    job: JobEnvironment,
    arena: Arena,
    checkpoint: Checkpoint | None,
    describer: Describer,
    objects: Mapping[str, Any],
) -> OldWorld | None:
    """The world that captured what the job starts from; None: this one, as far as ``objects`` tell. A collective.

    ``checkpoint``: what it starts from, if it is none of the snapshots in memory.

    Raises StateMismatch, StateUncovered, SnapshotIncomplete, StorageError, TimeoutError.
    """
    if job.origin is not None:
        arena.client.wait_restored(job.generation, RESTORE_TIMEOUT_SECONDS)  # the daemon knows of the origin by then
        near = NodeSource(job.node_dir, job.origin.position, job.origin.snapshot, arena.client, kept=True)
        return OldWorld(job.origin, environment.local_world_size, near)
    if checkpoint is None:
        return None
    if checkpoint.index.world_size == environment.world_size:
        manifest = checkpoint.record(environment.rank).manifest
        if _all(is_laid_out_as(manifest, environment, objects, describer)):
            return None
    source = CheckpointSource(checkpoint)
    return OldWorld(source.origin, source.lanes, source)


def is_laid_out_as(
    manifest: bytes, environment: WorkerEnvironment, objects: Mapping[str, Any], describer: Describer
) -> bool:
    """Whether this rank of an old world of as many had the same parts of these objects; also where nobody could say.

    A manifest that cannot be read is for the reader to refuse.
    """
    try:
        then, _ = read_outline(manifest, environment.rank, environment.world_size)
        now = describer.describe(objects).state
    except (StateMismatch, LayoutInvalid):
        return True
    wanted = [tensor for tensor in now.tensors if not tensor.like]  # what optimizers have may not be there yet
    parts = [then.by_name.get(then.aliases.get(each.name, each.name)) for each in wanted]
    return all(part is not None and part.axes == each.axes for part, each in zip(parts, wanted, strict=True))


class Crossing:
    """One rank's. All methods are called by all ranks, in the same order."""

    def __init__(self, environment: WorkerEnvironment, old: OldWorld, describer: Describer) -> None:
        """Raises StateMismatch, StateUncovered, and what reading raises."""
        self.old = old
        self._describer, self._version = describer, old.origin.snapshot.version
        compare_replicas(old.world, old.source, old.lanes, environment.rank, environment.world_size)
        self._restoring = Restoring(old, describer, environment.rank, environment.world_size)
        self._certified = False
        self._rank = environment.rank

    def restore(self, objects: Mapping[str, Any], every: Mapping[str, Any]) -> dict[str, Any]:
        """Put back the state of ``objects``; what the rest of the start needs: the tree of `restore.read_state`."""
        self._restoring.restore(objects, every)
        return {"objects": {}, "gradients": {}, "rng": self._restoring.rng(), "buckets": self._restoring.buckets()}

    def reader(self) -> SnapshotReader:
        """The same reads for DCP."""
        return SnapshotReader(self.old, self._rank)

    def certify(
        self, every: Mapping[str, Any], tell: Callable[[LinkMessage], object], *, is_last: bool = False
    ) -> None:
        """Have the state certified if every rank has tracked all; ``is_last``: anyway. Raises NotCertified."""
        if self._certified or not (is_last or _all(self._restoring.names <= every.keys())):
            return
        self._certified = True
        live = self._describer.describe(every)
        try:
            certified = certify(live, every, self._restoring.names, self.old.world.states, self._version)
        except NotCertified as error:
            if error.certificate is not None:
                tell(error.certificate)
            raise
        if certified is not None:
            tell(certified)


def _all(mine: bool) -> bool:
    """Whether it is so on all ranks."""
    flag = torch.tensor([int(mine)], device=exchange_device())
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())
