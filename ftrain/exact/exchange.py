"""The end of a fixed tree's sum across ranks, for gradients of which each rank has the whole.

Each rank has added up the nodes that it could; a few are left, one if its numbers are a whole subtree. The tensors are
laid end to end and cut into as many segments as there are ranks. Every rank sends each other one that one's segment of
its nodes, adds up its own segment along the tree, and all gather the results: with one node per rank these are the
bytes of an all-reduce. Integers with a common scale (FACTS 9), which add up the same in any order, take twice the
bytes, a pass for the scale and two for converting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ftrain.exact.tree import FixedTree, Node

Gradients = list[Tensor | None]
"""A gradient for each parameter; None: it had none."""
BUCKET_ELEMENTS = 8 << 20
"""Most elements that are exchanged at once, but at least one tensor."""
NOTHING = -0.0
"""What can be added to any float without changing a bit; +0.0 would turn -0.0 into +0.0."""
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # renamed in torch 2.13


def wide(dtype: torch.dtype) -> torch.dtype:
    """What gradients of a type are added up in."""
    return torch.promote_types(dtype, torch.float32)


def add_gradients(left: Gradients, right: Gradients) -> Gradients:
    """``left`` plus ``right``, in ``left``'s memory where both have one."""
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [b if a is None else a for a, b in zip(left, right, strict=True)]


class Exchange:
    """Sums the nodes of all ranks. Its memory stays: new pages would cost more than the bytes' way (FACTS 1)."""

    def __init__(self, like: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
        self._like = list(like)
        """The parameters."""
        self._group = group
        self._scratch: dict[str, Tensor] = {}
        self._results: dict[tuple[int, ...], Tensor] = {}

    def total(self, nodes: dict[Node, Gradients], nodes_of_ranks: Sequence[Sequence[Node]], count: int) -> Gradients:
        """The sum over all ranks' nodes, divided by ``count``, as the parameters' types. A collective.

        ``nodes`` are this rank's, those that ``nodes_of_ranks`` says it has. What was returned before is overwritten.
        """
        own = [gradients for _, gradients in sorted(nodes.items())]
        totals: Gradients = [None] * len(self._like)
        before, self._results = self._results, {}
        for bucket in _buckets(self._like, self._present_anywhere(own)):
            like = [self._like[index] for index in bucket]
            elements, world = sum(tensor.numel() for tensor in like), len(nodes_of_ranks)
            segment = self._sum_bucket([[g[i] for i in bucket] for g in own], like, nodes_of_ranks).div_(count)
            result = before.get(bucket)
            if result is None or result.numel() != world * len(segment):
                result = torch.empty(world * len(segment), dtype=like[0].dtype, device=like[0].device)
            self._results[bucket] = result
            _all_gather(result, segment.to(result.dtype), group=self._group)
            parts = torch.split(result[:elements], [tensor.numel() for tensor in like])
            for index, part in zip(bucket, parts, strict=True):
                totals[index] = _shaped(part, self._like[index])
        return totals

    def _present_anywhere(self, own: list[Gradients]) -> list[bool]:
        """Which parameters got a gradient on any rank."""
        here = [any(gradients[index] is not None for gradients in own) for index in range(len(self._like))]
        flags = torch.tensor(here, dtype=torch.int32, device=self._like[0].device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(flag) for flag in flags.tolist()]

    def _sum_bucket(self, own: list[Gradients], like: list[Tensor], nodes_of_ranks: Sequence[Sequence[Node]]) -> Tensor:
        """This rank's segment of the sum."""
        world, most = len(nodes_of_ranks), max(map(len, nodes_of_ranks))
        segment = -(-sum(tensor.numel() for tensor in like) // world)
        incoming = self._memory("incoming", sum(map(len, nodes_of_ranks)) * segment, like[0])
        tree: FixedTree[Tensor] = FixedTree(Tensor.add_)
        for place in range(most):  # every rank's first node, then every rank's second: one piece of memory each
            given = [nodes[place] for nodes in nodes_of_ranks if place < len(nodes)]
            sizes = [segment if place < len(nodes) else 0 for nodes in nodes_of_ranks]
            piece, incoming = incoming[: sum(sizes)], incoming[sum(sizes) :]
            mine = place < len(own)
            outgoing = self._laid_out(own[place], like, world * segment) if mine else piece[:0]
            dist.all_to_all_single(piece, outgoing, sizes, [segment if mine else 0] * world, group=self._group)
            for node, value in zip(given, piece.view(-1, segment), strict=True):
                tree.put(node, value)
        total = tree.total()
        assert total is not None
        return total

    def _laid_out(self, gradients: Gradients, like: list[Tensor], elements: int) -> Tensor:
        """The gradients end to end."""
        first = gradients[0]
        if len(gradients) == 1 and first is not None and first.numel() == elements:
            return first.reshape(-1)
        flat = self._memory("outgoing", elements, like[0])
        parts = torch.split(flat, [*(tensor.numel() for tensor in like), elements - sum(t.numel() for t in like)])
        for part, gradient in zip(parts, (*gradients, None), strict=True):
            if gradient is None:
                part.fill_(NOTHING)
            else:
                part.view(gradient.shape).copy_(gradient)
        return flat

    def _memory(self, name: str, elements: int, like: Tensor) -> Tensor:
        name = f"{name} {like.device} {wide(like.dtype)}"
        memory = self._scratch.get(name)
        if memory is None or memory.numel() < elements:
            memory = self._scratch[name] = torch.empty(elements, dtype=wide(like.dtype), device=like.device)
        return memory[:elements]


def _buckets(like: Sequence[Tensor], present: list[bool]) -> Iterator[tuple[int, ...]]:
    """Indices of tensors of one type and device that are exchanged at once."""
    bucket: list[int] = []
    elements = 0
    for index in sorted(
        (i for i, there in enumerate(present) if there and like[i].numel()), key=lambda i: str(like[i].dtype)
    ):
        tensor, first = like[index], like[bucket[0] if bucket else index]
        full = elements + tensor.numel() > BUCKET_ELEMENTS
        if bucket and (full or (tensor.dtype, tensor.device) != (first.dtype, first.device)):
            yield tuple(bucket)
            bucket, elements = [], 0
        bucket.append(index)
        elements += tensor.numel()
    if bucket:
        yield tuple(bucket)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """With the parameter's strides, as its gradient should have."""
    if like.is_contiguous():
        return flat.view(like.shape)
    return torch.empty_like(like).copy_(flat.view(like.shape))
