"""FSDP2 along a fixed tree: what takes the place of its reduce-scatter in the bit-exact mode.

In each round every rank goes through one micro-batch, and FSDP2 hands over the gradients of one of its modules, cut
into a segment per rank. All-to-all moves the same bytes as a reduce-scatter would, but brings the segment of each
micro-batch by itself; numbers are dealt in turn, so a round's are neighbours, and a rank keeps as many sums of its own
segment as the number of micro-batches has binary digits. FSDP2 adds up what it gets back: nothing, and in the last
round the total.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

from ftrain.errors import ExactMisuse
from ftrain.exact.exchange import NOTHING, wide
from ftrain.exact.shares import Shares
from ftrain.exact.tree import FixedTree


class ShardedTree(ReduceScatter):
    """Adds up one module's gradients over the rounds of a step."""

    def __init__(self, module: Any) -> None:
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)  # this divides, once
        module.set_custom_reduce_scatter(self)
        module.set_all_reduce_hook(self._alone)
        self._tree: FixedTree[Tensor] = FixedTree(Tensor.add_)
        self._shares = Shares(0, 0, 1)
        self._count = 1
        self._turn = -1
        self._pending = False

    def begin(self, shares: Shares, count: int) -> None:
        """A step begins; its sum is to be divided by ``count``."""
        self._tree.nodes.clear()
        self._shares, self._count, self._turn, self._pending = shares, count, -1, False

    def expect(self, turn: int) -> None:
        """The ranks' micro-batches number ``turn`` follow."""
        self._turn, self._pending = turn, True

    def finish(self) -> None:
        """The step is over. Raises ExactMisuse if its total was never asked for."""
        self._turn = -1
        if self._tree.nodes:
            self._tree.nodes.clear()
            raise ExactMisuse("a sharded module had no gradient in the last micro-batch: its sum cannot be handed over")

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for FSDP2's buffers."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        """What FSDP2 calls in backward where there is more than one rank."""
        leaves = torch.empty_like(input_tensor)
        dist.all_to_all_single(leaves, input_tensor, group=group)
        self._take(leaves.view(group.size(), -1), output_tensor)

    def _alone(self, reduced: Tensor) -> None:
        """What it calls after that; a rank that is alone has not been asked."""
        if self._shares.world_size == 1:
            self._take(reduced.clone().view(1, -1), reduced)

    def _take(self, leaves: Tensor, result: Tensor) -> None:
        if not self._pending:
            raise ExactMisuse(
                "bit-exact mode: one backward pass for each micro-batch of ctx.microbatches, and none outside"
            )
        self._pending = False
        first = self._turn * self._shares.world_size
        if any(node.numel() != leaves.shape[1] for node in self._tree.nodes.values()):
            raise ExactMisuse(
                "parameters of a sharded module had gradients in some micro-batches of a step only: shard them apart"
            )
        for number, leaf in zip(range(first, self._shares.count), leaves, strict=False):
            self._tree.put((0, number), leaf.to(wide(leaf.dtype), copy=True))
        if self._turn + 1 < self._shares.rounds_max:
            result.fill_(NOTHING)
            return
        total = self._tree.total()
        assert total is not None
        result.copy_(total.div_(self._count))
