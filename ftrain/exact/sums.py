"""The ordinary way: DDP and FSDP2 sum gradients as they always do, and divide once, by the global count.

Left alone both take the mean over ranks, which weighs a sample by how many its rank happened to have. DDP gets a
communication hook that sums and divides; FSDP2 is told to reduce by sums and what to divide by. A rank's own
micro-batches add up in its gradients; DDP communicates at a rank's last one, FSDP2 at each.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ftrain.errors import ExactMisuse
from ftrain.exact.models import Models, refuse_leftovers, refuse_unsummed
from ftrain.exact.shares import Shares


class Summing(Protocol):
    """How the gradients of a step's micro-batches come together; all methods are called by all ranks alike."""

    in_turn: bool
    """How numbers are to be dealt (shares.py)."""

    def begin(self, shares: Shares, global_count: int) -> None:
        """A step begins; its sum is to be divided by ``global_count``."""

    def before(self, turn: int, number: int | None, *, last: bool) -> None:
        """The rank's ``turn``-th micro-batch follows (None: one that counts for nothing); ``last``: of this rank's."""

    def after(self, number: int | None) -> None:
        """Its backward is over."""

    def finish(self) -> None:
        """All are over: now the gradients are those of the global batch."""


class Sums:
    """`Summing` by DDP and FSDP2."""

    in_turn = False

    def __init__(self, models: Models) -> None:
        self._models = models
        self._hooks = [_Hook(ddp) for ddp in models.ddps]
        self._count = 1
        for module in models.sharded:
            # Gloo has no other reduction, and this one divides after the sum; torch 2.13 divides twice where there is
            # one shard alone, and then sums over replicas anyway.
            module.set_force_sum_reduction_for_comms(models.is_cut)

    def expect(self, global_count: int) -> None:
        """What comes next is divided by this; a new sum begins."""
        self._count = global_count
        for hook in self._hooks:
            hook.begin(global_count)
        for module in self._models.sharded:
            module.set_gradient_divide_factor(float(global_count))

    def begin(self, shares: Shares, global_count: int) -> None:
        """See `Summing`."""
        refuse_leftovers(self._models.parameters)
        self.expect(global_count)

    def before(self, turn: int, number: int | None, *, last: bool) -> None:
        """See `Summing`."""
        for ddp in self._models.ddps:
            ddp.require_backward_grad_sync = last

    def after(self, number: int | None) -> None:
        """See `Summing`."""

    def finish(self) -> None:
        """See `Summing`."""
        models = self._models
        for ddp, hook in zip(models.ddps, self._hooks, strict=True):
            ddp.require_backward_grad_sync = True
            if not hook.done and any(parameter.grad is not None for parameter in ddp.parameters()):
                raise ExactMisuse("DDP did not sum these gradients: leave model.no_sync() to ctx.microbatches")
        refuse_unsummed(models.sharded)
        summed = {id(parameter) for ddp in models.ddps for parameter in ddp.parameters()}
        alone = [p.grad for p in models.whole if p.grad is not None and id(p) not in summed]
        if alone and models.world_size > 1:
            raise ExactMisuse("a tracked model has gradients that nobody sums: wrap it in DDP or fully_shard it")
        for gradient in alone:
            gradient.div_(self._count)


class _Hook:
    """Sums a DDP's gradients over its ranks and divides them by the global count."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        if ddp._comm_hooks:
            raise ExactMisuse("this DDP has a communication hook; exact batches sum its gradients by one of their own")
        self._group = ddp.process_group
        self._count = 1
        self.done = False
        """All of its gradients have been summed in this step."""
        ddp.register_comm_hook(None, lambda state, bucket: self._run(bucket))

    def begin(self, count: int) -> None:
        self._count, self.done = count, False

    def _run(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        # What was summed before would be summed again, once for each rank.
        if self.done:
            raise ExactMisuse(
                "DDP summed its gradients twice in one step: use ctx.microbatches, or model.no_sync() for all "
                "backward passes but the last"
            )
        self.done = bucket.is_last()
        work = dist.all_reduce(bucket.buffer(), group=self._group, async_op=True)
        future: Any = work.get_future()
        return future.then(lambda done: done.value()[0].div_(self._count))  # type: ignore[no-any-return]
