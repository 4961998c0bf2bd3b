"""Any logical tensors of an old world, read into any memory: what restores objects and what serves DCP both use it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from ftrain.errors import StateMismatch
from ftrain.layout import flat_bytes
from ftrain.logical.placements import Scope
from ftrain.logical.reads import Plan
from ftrain.logical.state import LogicalTensor, RankState
from ftrain.reshard.filling import Places, fill
from ftrain.reshard.origin import OldWorld
from ftrain.state import fill_tensor


class TensorReader:
    """For one rank of the new world."""

    def __init__(self, old: OldWorld, rank: int) -> None:
        self._old, self._rank = old, rank

    @torch.no_grad()
    def read(self, tensors: Sequence[LogicalTensor], memory: Sequence[Tensor], aliases: dict[str, str]) -> None:
        """The bytes of these tensors into this memory: local tensors, in the same order.

        ``aliases``: other names to find them by. Raises StateUnreadable, and what reading raises.
        """
        scopes = self._old.planner.scopes(RankState(self._rank, tuple(tensors), aliases))
        own = [scope is Scope.OWN is tensor.scope for scope, tensor in zip(scopes, tensors, strict=True)]
        plain = [n for n, scope in enumerate(scopes) if scope is Scope.SAME or own[n]]
        dense = [memory[n] if flat_bytes(memory[n]) is not None else _densely(memory[n]) for n in plain]
        targets = [_in_memory(tensors[n], place) for n, place in zip(plain, dense, strict=True)]
        plan = self._old.planner.plan(RankState(self._rank, tuple(targets), aliases), self._node)
        for tensor, place in zip(targets, dense, strict=True):
            if tensor.elements < place.numel():
                place.zero_()  # padding: nobody keeps it, and replicas must have the same
        self._carry_out(plan, Places([dense]))
        for n, place in zip(plain, dense, strict=True):
            if place is not memory[n]:
                fill_tensor(memory[n], place)
        for n in sorted(set(range(len(tensors))) - set(plain)):
            terms = self._terms(tensors[n], memory[n], aliases)
            fill_tensor(memory[n], _mean(terms) if scopes[n] is Scope.MEAN else _one(tensors[n].name, terms))

    def _terms(self, tensor: LogicalTensor, place: Tensor, aliases: dict[str, str]) -> list[Tensor]:
        """One tensor of which holders have values of their own: all of them."""
        terms = [_densely(place).zero_()]  # padding is never read
        target = RankState(self._rank, (_in_memory(tensor, terms[0]),), aliases)
        plan = self._old.planner.plan(target, self._node)
        terms += [torch.zeros_like(terms[0]) for _ in range(1, plan.terms.get(0, 1))]
        self._carry_out(plan, Places([[term] for term in terms]))
        return terms

    def _carry_out(self, plan: Plan, places: Places) -> None:
        fill(plan, places, self._old.source, self._old.lanes, self._old.origin.position, self._rank)

    @property
    def _node(self) -> int:
        """This node in the old world; of nodes that were none of it each rank is one of its own, to begin elsewhere."""
        return self._old.origin.position if self._old.origin.position >= 0 else -1 - self._rank


def _in_memory(tensor: LogicalTensor, place: Tensor) -> LogicalTensor:
    """The same, as it lies in that place."""
    strides = tuple(place.stride())
    return tensor if tensor.strides == strides else msgspec.structs.replace(tensor, strides=strides)


def _densely(tensor: Tensor) -> Tensor:
    """A new tensor like it, without gaps."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _mean(terms: Sequence[Tensor]) -> Tensor:
    total = sum((term.double() for term in terms[1:]), terms[0].double())
    return (total / len(terms)).to(terms[0].dtype)


def _one(name: str, terms: Sequence[Tensor]) -> Tensor:
    """What was each rank's own and is one tensor here: parts of it come from one rank or another, so all must agree."""
    first, *others = (term.reshape(-1).view(torch.uint8) for term in terms)
    for other in others:
        if not torch.equal(first, other):
            raise StateMismatch(
                f"{name} was each rank's own in the world that is read, with values that differ, and is one tensor of "
                "all ranks here: say by ctx.layout what it is"
            )
    return terms[0]
