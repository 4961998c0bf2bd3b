"""The bit-exact way: gradients are added up along a fixed tree over the micro-batches' numbers.

Each micro-batch's gradient is taken by itself, so DDP's own communication is passed over, which adds up in an order
that depends on the world. FSDP2's is replaced, module by module (sharded.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ftrain.errors import ExactMisuse
from ftrain.exact.exchange import Exchange, Gradients, add_gradients, wide
from ftrain.exact.models import Forwards, Models, refuse_leftovers, refuse_unsummed
from ftrain.exact.presence import Presence
from ftrain.exact.shares import Shares
from ftrain.exact.tree import FixedTree, nodes_of

if TYPE_CHECKING:
    from ftrain.exact.sharded import ShardedTree


class Trees:
    """`Summing` in an order that no world changes."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._parameters = list(models.whole)
        self._exchange = Exchange(models.whole, models.group)
        self.in_turn = bool(models.sharded)
        self._sharded = _replace_reductions(models)
        self._presence = Presence(models, always_the_same=True)
        self._forwards = Forwards(models.ddps)
        self._shares = Shares(0, 0, 1)
        self._count = 1
        self._tree: FixedTree[Gradients] = FixedTree(add_gradients)

    def begin(self, shares: Shares, global_count: int) -> None:
        """See `Summing`."""
        refuse_leftovers(self._models.parameters)
        self._forwards.forget()
        self._presence.begin()
        self._shares, self._count = shares, global_count
        self._tree.nodes.clear()
        for ddp in self._models.ddps:
            ddp._static_graph_delay_allreduce_enqueued = True  # else a static graph's first backward is summed anyway
            ddp.require_backward_grad_sync = False
            ddp.require_forward_param_sync = True  # buffers: once a step, as if gradients had been summed by it
        for part in self._sharded:
            part.begin(shares, global_count)

    def weigh(self) -> None:
        """See `Summing`; of whole gradients each micro-batch's are taken by themselves."""
        self._presence.weigh()

    def before(self, turn: int, number: int | None, *, last: bool) -> None:
        """See `Summing`."""
        for part in self._sharded:
            part.expect(turn)

    def after(self, number: int | None) -> None:
        """See `Summing`."""
        refuse_unsummed(self._models.sharded)
        self._presence.after()
        leaf = [_take_gradient(parameter) for parameter in self._parameters]
        if number is not None and leaf:
            self._tree.put((0, number), leaf)

    def finish(self) -> None:
        """See `Summing`."""
        for ddp in self._models.ddps:
            ddp._static_graph_delay_allreduce_enqueued = False  # it has not summed: there is no layout to capture
            ddp.require_backward_grad_sync = True
        for part in self._sharded:
            part.finish()
        self._presence.finish()
        if not self._parameters:
            return
        for parameter, gradient in zip(self._parameters, self._totals(), strict=True):
            parameter.grad = gradient

    def _totals(self) -> Gradients:
        shares = self._shares
        if shares.world_size > 1:
            of_ranks = [nodes_of(shares.of(rank)) for rank in range(shares.world_size)]
            nodes, self._tree.nodes = self._tree.nodes, {}
            return self._exchange.total(nodes, of_ranks, self._count)
        total = self._tree.total() or [None] * len(self._parameters)
        return [
            None if gradient is None else gradient.div_(self._count).to(parameter.dtype)
            for parameter, gradient in zip(self._parameters, total, strict=True)
        ]


def _take_gradient(parameter: nn.Parameter) -> Tensor | None:
    gradient, parameter.grad = parameter.grad, None
    if gradient is not None and gradient.is_sparse:
        raise ExactMisuse("bit-exact mode needs dense gradients: nn.Embedding(sparse=False)")
    return None if gradient is None else gradient.to(wide(gradient.dtype))


def _replace_reductions(models: Models) -> list[ShardedTree]:
    if not models.sharded:
        return []
    if not hasattr(models.sharded[0], "set_custom_reduce_scatter"):
        raise ExactMisuse("bit-exact mode with fully_shard needs a torch that has FSDPModule.set_custom_reduce_scatter")
    if any(len(part._get_fsdp_state()._fsdp_param_groups) > 1 for part in models.sharded):
        raise ExactMisuse("bit-exact mode knows one mesh per sharded module")
    if any(part._get_fsdp_state()._fsdp_param_groups[0]._is_hsdp for part in models.sharded):
        raise ExactMisuse("bit-exact mode knows fully_shard over one mesh dimension, not replicas of shards (HSDP)")
    from ftrain.exact.sharded import ShardedTree  # loads FSDP2

    return [ShardedTree(part) for part in models.sharded]
