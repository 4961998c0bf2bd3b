"""Sampled hashes: are replicas that must be equal still equal?

Every so many steps each rank makes a digest of the parameters that it holds in common with other ranks, and one of the
optimizer's state for them, and sends both to its agent; the controller compares them. A bit that flips in memory or
in a sum makes no error anywhere, and spoils a training all the same.

What must be equal is what something keeps equal: the parameters under a DDP, among its process group; a DTensor's local
part, among the ranks of its mesh that differ in `Replicate` dimensions only. Of other, plain parameters nothing tells;
who keeps the same ones equal, averaging gradients itself, shows by digests alone (`ftrain_launcher.detect.likeness`).
Buffers differ by design (BatchNorm), and so may all else. Ranks compare only sets of the same members, shapes and
types, so that an uneven program stays silent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ftrain.ddp import kept_equal
from ftrain.layout import flat_bytes, materialized_bytes
from ftrain.link import LinkMessage, ReplicaDigest, Replicas
from ftrain.sharded import is_sharded, local_of

BYTES_MAX = 8 << 30
"""One check hashes no more; tensors of a larger state take turns."""
PIECE_BYTES = 16 << 20
"""So much at a time is copied from a GPU."""

Members = tuple[int, ...]
"""Global ranks."""


class ReplicaCheck:
    """Sends digests to the agent after every ``every`` steps, and after the first; never if that is 0."""

    def __init__(self, every: int, send: Callable[[LinkMessage], bool]) -> None:
        self._every, self._send = every, send
        self._first = True

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be checked."""
        if self._every == 0 or dist.get_world_size() == 1:
            return False
        return self._first or (step + 1) % self._every == 0

    def check(
        self,
        step: int,
        parameters: Sequence[nn.Parameter],
        ddps: Iterable[DistributedDataParallel],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Send the digests after ``step``. The parameters come in the same order on all ranks. Never raises."""
        self._first = False
        turn = (step + 1) // self._every
        try:
            digests = [
                digest
                for members, shared in (*replica_sets(parameters, ddps).items(), ((), plain(parameters, ddps)))
                for what, tensors in (("parameters", shared), ("optimizer state", _state(shared, optimizers)))
                if (digest := _digest(what, members, [local_of(tensor) for tensor in tensors], turn)) is not None
            ]
            self._send(Replicas(step, tuple(digests)))
        except Exception as error:  # whatever it is: training goes on, unchecked
            self._every = 0
            with suppress(Warning):
                warnings.warn(f"replicas are not compared any more: {error!r}", stacklevel=2)


def replica_sets(
    parameters: Sequence[nn.Parameter], ddps: Iterable[DistributedDataParallel]
) -> dict[Members, list[nn.Parameter]]:
    """The parameters that ranks hold in common, by the ranks that do."""
    by_ddp: dict[int, Members] = {}
    for ddp in ddps:
        members = tuple(sorted(dist.get_process_group_ranks(ddp.process_group)))
        by_ddp.update((id(parameter), members) for parameter in kept_equal(ddp))
    sets: dict[Members, list[nn.Parameter]] = {}
    for parameter in parameters:
        members = by_ddp.get(id(parameter)) or _same_shard(parameter)
        if len(members) > 1:
            sets.setdefault(members, []).append(parameter)
    return sets


def plain(parameters: Sequence[nn.Parameter], ddps: Iterable[DistributedDataParallel]) -> list[nn.Parameter]:
    """Those of which nothing tells who has them in common."""
    told = {id(parameter) for ddp in ddps for parameter in ddp.module.parameters()}
    return [parameter for parameter in parameters if id(parameter) not in told and not is_sharded(parameter)]


def _same_shard(tensor: Tensor) -> Members:
    """The ranks that hold the same part of a DTensor; of another tensor none."""
    mesh: Any = getattr(tensor, "device_mesh", None)
    coordinate = None if mesh is None else mesh.get_coordinate()
    if coordinate is None:
        return ()
    placements: Any = tensor.placements  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in placements):
        return ()
    index = tuple(
        slice(None) if placement.is_replicate() else at for placement, at in zip(placements, coordinate, strict=True)
    )
    return tuple(sorted(mesh.mesh[index].flatten().tolist()))


def _state(parameters: list[nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    """What optimizers keep for parameters that are equal: equal gradients keep it equal."""
    found = []
    for optimizer in optimizers:
        for parameter in parameters:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and (value.shape == parameter.shape or value.numel() == 1):
                    found.append(value)
    return found


def _digest(what: str, members: Members, tensors: list[Tensor], turn: int) -> ReplicaDigest | None:
    turns = -(-sum(tensor.nbytes for tensor in tensors) // BYTES_MAX)
    if turns == 0:
        return None
    taken = tensors[turn % turns :: turns]
    hasher = xxhash.xxh3_64()
    for tensor in taken:
        for piece in pieces(tensor):
            hasher.update(piece)
    facts = [members, [(str(tensor.dtype), tuple(tensor.shape)) for tensor in taken]]
    kind = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(facts))
    whose = f"{len(members)} ranks from {members[0]}" if members else "plain tensors"
    return ReplicaDigest(f"{what}: {whose}, {kind:016x}", len(members), hasher.intdigest())


def pieces(tensor: Tensor) -> Iterator[Any]:
    """The tensor's bytes; those of a GPU through a bounded copy."""
    flat = flat_bytes(tensor)
    flat = materialized_bytes(tensor) if flat is None else flat
    if flat.device.type == "cpu":
        yield flat.numpy()
        return
    for start in range(0, flat.numel(), PIECE_BYTES):
        yield flat[start : start + PIECE_BYTES].cpu().numpy()
