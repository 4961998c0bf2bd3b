"""What a rank's snapshots say of their state, so that another world can read it: made once per plan.

A state that cannot be described harms nothing: the reason is kept in place of the description. The same world can be
restored all the same; a re-shard refuses, with that reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from ftrain.logical.rules import NamedMesh, Rules
from ftrain.logical.state import Extent, RankState, kept
from ftrain.plan import Plan
from ftrain.reshard.values import EXTRA, sharded_outside
from ftrain.sharded import is_sharded, leaves
from ftrain.state import state_of, tensor_key

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from ftrain.logical.live import Live

Logical = RankState | str
"""In a manifest: the description, or why there is none."""
REASON_CHARACTERS_MAX = 500
_FAILED = "describing it failed: "
"""So begins the reason where there might be none another time; any other is of what ranks hold, and lasts."""


class Describer:
    """One rank's way to describe its objects: by DTensors, by DDP, and by rules of the user's (`Context.layout`)."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size
        self.rules: Rules | None = None
        self.mesh: NamedMesh | None = None
        """Of the dimensions that the rules speak of."""
        self.ddps: Iterable[DistributedDataParallel] = ()
        """Those round tracked modules that are not tracked themselves."""
        self.refused: str | None = None
        """Why this state is not described, though it could be: its layout has proved wrong (layouts.py)."""
        self.inherited: str | None = None
        """Why the snapshot that training goes on from is not."""
        self._warned = False

    def describe(self, objects: Mapping[str, Any]) -> Live:
        """Live objects. Raises LayoutInvalid."""
        from ftrain.logical.live import describe  # it takes FSDP along, which a run without ftrain does not need

        return describe(objects, self._rank, self._world_size, self.rules, self.mesh, self.ddps)

    def record(self, objects: Mapping[str, Any], plan: Plan) -> bytes:
        """An encoded `Logical`: the objects' tensors, and where in this rank's data a plan keeps them.

        Never raises; rank 0 warns, once, of what it could not describe.
        """
        found: Logical
        try:
            found = self._kept(objects, plan) if self.refused is None else self.refused
        except Exception as error:  # whatever it is, the snapshot itself is sound
            found = f"{_FAILED}{type(error).__name__}: {error}"
        return msgspec.msgpack.encode(self._said(found) if isinstance(found, str) else found)

    def resume(self, reason: str | None) -> None:
        """Training goes on from a snapshot that says so. What was seen as it began is not seen any more, and lasts."""
        self.inherited = reason
        self.refused = None if reason is None or reason.startswith(_FAILED) else reason

    def refuse(self, reason: str) -> None:
        """From the next plan on the state is not described; rank 0 says so at once."""
        self.refused = self._said(reason)

    def _said(self, reason: str) -> str:
        """As much of it as snapshots keep; rank 0 warns, once."""
        if self._rank == 0 and not self._warned:
            self._warned = True
            warnings.warn(f"no other number of ranks can resume this state: {reason}", stacklevel=3)
        return reason[:REASON_CHARACTERS_MAX]

    def _kept(self, objects: Mapping[str, Any], plan: Plan) -> RankState:
        live = self.describe(objects)
        for name, tracked in objects.items():
            for where, said in _said_by_users(name, tracked):
                if any(map(is_sharded, leaves(said))):
                    raise sharded_outside(where)
        places: dict[int, list[Extent]] = {}
        for piece in plan.layout.region_pieces(self._rank):
            places.setdefault(piece.index, []).append(Extent(piece.start, piece.end, piece.region_offset))
        tensors, extents = [], {}
        for tensor, memory in zip(live.state.tensors, live.tensors, strict=True):
            index = plan.index_of.get(tensor_key(memory))
            if index is not None:  # else it is not of the state: nobody gets it back
                tensors.append(tensor)
                extents[tensor.name] = tuple(places.get(index, ()))
        return kept(RankState(self._rank, tuple(tensors), live.state.aliases, live.state.parameters), extents)


def _said_by_users(name: str, tracked: Any) -> Iterator[tuple[str, Any]]:
    """What of an object's state is no parameter, buffer or optimizer's, and whose it is."""
    if isinstance(tracked, nn.Module):
        for prefix, part in tracked.named_modules(prefix=name):
            if type(part).get_extra_state is not nn.Module.get_extra_state:
                yield f"{prefix}.{EXTRA}", part.get_extra_state()
    elif not isinstance(tracked, torch.optim.Optimizer):
        yield name, state_of(tracked)
