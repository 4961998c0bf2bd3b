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
from ftrain.exact.models import Forwards, Models, refuse_leftovers, refuse_unsummed
from ftrain.exact.presence import Presence, refuse_changed, written
from ftrain.exact.shares import Shares


class Summing(Protocol):
    """How the gradients of a step's micro-batches come together; all methods are called by all ranks alike."""

    in_turn: bool
    """How numbers are to be dealt (shares.py)."""

    def begin(self, shares: Shares, global_count: int) -> None:
        """A step begins; its sum is to be divided by ``global_count``."""

    def weigh(self) -> None:
        """A micro-batch's loss is weighed, before its backward. Raises ExactMisuse if gradients were changed."""

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
        self._forwards = Forwards(models.ddps)
        self._count = 1
        self._presence = Presence(models)
        self._left: list[tuple[int, int] | None] | None = None
        """What was in whole gradients when the last micro-batch was over; None: this is the first."""
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
        if shares.rounds_max > 1 and any(ddp.static_graph for ddp in self._models.ddps):
            raise ExactMisuse(
                "DDP(static_graph=True) cannot add up several micro-batches before it sums: leave static_graph out, or "
                "use --deterministic-reduction, which sums by itself"
            )
        refuse_leftovers(self._models.parameters)
        self._forwards.forget()
        self.expect(global_count)
        self._presence.begin()
        self._left = None

    def look_for_leftovers(self) -> None:
        """A step's first backward begins: what DDP has summed before, it would sum again."""
        for hook in self._hooks:
            hook.look_for_leftovers()

    def weigh(self) -> None:
        """See `Summing`."""
        if self._left is not None:
            refuse_changed(self._models.whole, self._left)
            self._presence.weigh()

    def before(self, turn: int, number: int | None, *, last: bool) -> None:
        """See `Summing`."""
        for ddp in self._models.ddps:
            ddp.require_backward_grad_sync = last

    def after(self, number: int | None) -> None:
        """See `Summing`."""
        self._left = list(map(written, self._models.whole))
        self._presence.after()

    def finish(self) -> None:
        """See `Summing`."""
        self._left = None
        models = self._models
        for ddp, hook in zip(models.ddps, self._hooks, strict=True):
            ddp.require_backward_grad_sync = True
            if hook.done:
                self._forwards.summed(ddp)
            elif any(parameter.grad is not None for parameter in ddp.parameters()):
                raise ExactMisuse(
                    "DDP did not sum these gradients: call the DDP itself, not its module, and leave model.no_sync() "
                    "to ctx.microbatches"
                )
        refuse_unsummed(models.sharded)
        self._presence.finish()
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
        self._ddp, self._group = ddp, ddp.process_group
        self._count = 1
        self._has_leftovers = False
        self.done = False
        """All of its gradients have been summed in this step."""
        ddp.register_comm_hook(None, lambda state, bucket: self._run(bucket))

    def begin(self, count: int) -> None:
        self._count, self.done, self._has_leftovers = count, False, False

    def look_for_leftovers(self) -> None:
        grads = [parameter.grad for parameter in self._ddp.parameters() if parameter.grad is not None]
        self._has_leftovers = any(bool(grad.count_nonzero()) for grad in grads)

    def _run(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        # What was summed before would be summed again, once for each rank.
        if self._has_leftovers:
            raise ExactMisuse(
                "gradients are left from the step before, and DDP would sum them again: call optimizer.zero_grad() "
                "after each step, and make the global batch larger instead of accumulating over steps"
            )
        if self.done:
            raise ExactMisuse(
                "DDP summed its gradients twice in one step: one backward pass for each micro-batch of "
                "ctx.microbatches (add up its losses), or model.no_sync() for all of a step but the last"
            )
        self.done = bucket.is_last()
        work = dist.all_reduce(bucket.buffer(), group=self._group, async_op=True)
        future: Any = work.get_future()
        return future.then(lambda done: done.value()[0].div_(self._count))  # type: ignore[no-any-return]
