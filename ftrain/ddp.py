"""DDP: which tensors it keeps equal on all ranks, and the layout of its gradient buckets.

DDP lays out its buckets anew after its first backward, in the order in which gradients became ready; the layout
decides in which order floats are added (FACTS 9). A resumed process would start from the initial layout and drift
by a bit. So the layout is part of the snapshot, and `replay` brings a fresh reducer to it: one backward of an empty
graph in which the gradients are declared ready in the recorded order, all of them zero. The user's forward is not
needed and no parameter, optimizer or generator is touched.

Seen in torch 2.13: the reducer rebuilds at the next forward what the last backward recorded, so calling
``_rebuild_buckets()`` at the commit between them gives the same layout, earlier; ``_get_ddp_logging_data()`` tells
it only after ``logger.set_runtime_stats_and_log()``. With ``static_graph`` the first backward only counts how often
each gradient comes, the second records the order: it takes two replays. With ``find_unused_parameters`` alone
nothing is rebuilt.
"""

from __future__ import annotations

import gc
from typing import Any, cast

import msgspec
import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ftrain.errors import StateMismatch

_LOGGING_SAMPLE_RATE = 100
"""The reducer's own default."""


class BucketLayout(msgspec.Struct, frozen=True):
    """What a DDP's reducer has settled on."""

    buckets: tuple[tuple[int, ...], ...] = ()
    """Indices of parameters, bucket by bucket; empty: not rebuilt."""
    fired: tuple[int, ...] = ()
    """static_graph only: the gradients of one backward as they came; a parameter may come twice, or never."""
    sync_next: bool = True
    """The next forward broadcasts buffers (not after a forward under ``no_sync``)."""
    parameters: int = 0
    """Digest of the parameters that it is about: their names and shapes. Another world looks for the same."""


def find_ddps(parameters: list[nn.Parameter]) -> dict[int, DistributedDataParallel]:
    """All living DDP objects round these parameters, also where only ``ddp.module`` is tracked.

    The key is the index of the object's first parameter among ``parameters``: the same on all ranks and runs.
    """
    index_of = {id(parameter): index for index, parameter in enumerate(parameters)}
    found: dict[int, DistributedDataParallel] = {}
    # type(), not isinstance(): lazy proxies answer __class__ by doing work. There are few types among many objects.
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, DistributedDataParallel)}
    for candidate in objects if kinds else ():
        if type(candidate) not in kinds or not hasattr(candidate, "reducer"):
            continue
        indices = [index_of[id(p)] for p in candidate.parameters() if id(p) in index_of]
        if indices:
            found[min(indices)] = candidate
    return dict(sorted(found.items()))


def replicated_parameters(ddp: DistributedDataParallel) -> list[nn.Parameter]:
    """The parameters that ``ddp`` keeps equal on all ranks of the job."""
    if dist.get_world_size(ddp.process_group) != dist.get_world_size():
        return []
    return kept_equal(ddp)


def kept_equal(ddp: DistributedDataParallel) -> list[nn.Parameter]:
    """The parameters that ``ddp`` keeps equal on all ranks of its group, unless a hook lets replicas go apart."""
    if any(getattr(hook, "__name__", "") == "post_localSGD_hook" for hook, _ in ddp._comm_hooks):
        return []
    ignored = ddp.parameters_to_ignore
    return [parameter for name, parameter in ddp.module.named_parameters() if name not in ignored]


class Buckets:
    """The bucket layout of one DDP object, read once it is settled."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self.ddp = ddp
        self._rebuilt: BucketLayout | None = None
        facts = [(name, tuple(p.shape), p.requires_grad) for name, p in ddp.module.named_parameters()]
        self.parameters = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(facts))
        """See `BucketLayout`."""

    @property
    def rebuilds(self) -> bool:
        """This DDP lays its buckets out anew at some time."""
        return bool(self.ddp.static_graph or not self.ddp.find_unused_parameters)

    def settle(self) -> bool:
        """Rebuild what the next forward would rebuild; False: the reducer is half way and cannot be captured.

        A collective: all ranks call it after the same step.
        """
        if self._rebuilt is not None or not self.rebuilds:
            return True
        if self.ddp.reducer._rebuild_buckets():
            self.ddp._has_rebuilt_buckets = True
        self._rebuilt = self._read()
        return self._rebuilt is not None or not self._counted

    def layout(self) -> BucketLayout:
        """The layout now; call `settle` first."""
        sync = bool(self.ddp.require_forward_param_sync)
        return msgspec.structs.replace(self._rebuilt or BucketLayout(), sync_next=sync, parameters=self.parameters)

    def replay(self, layout: BucketLayout) -> None:
        """Bring a fresh DDP to ``layout``. A collective. Raises StateMismatch if the model is another one."""
        self.ddp.require_forward_param_sync = layout.sync_next
        if not layout.buckets:
            return
        if not self.settle() or self._rebuilt is None:
            self._replay(layout)
        if self._rebuilt is None or self._rebuilt.buckets != layout.buckets:
            raise StateMismatch("DDP's gradient buckets cannot be laid out as in the snapshot: is it the same model?")

    @property
    def _counted(self) -> bool:
        """The first backward of a static graph is over: what it counted is kept where nobody can read it."""
        return bool(self.ddp.static_graph and self.ddp._static_graph_delay_allreduce_enqueued)

    def _read(self) -> BucketLayout | None:
        ddp = cast(Any, self.ddp)  # the rest is untyped, and private: see the top of this file
        ddp.reducer._set_ddp_runtime_logging_sample_rate(1)
        ddp.logger.set_runtime_stats_and_log()
        ddp.reducer._set_ddp_runtime_logging_sample_rate(_LOGGING_SAMPLE_RATE)
        data = ddp._get_ddp_logging_data()
        buckets = str(data.get("rebuilt_per_bucket_param_indices", ""))
        if not buckets:
            return None
        fired = str(data.get("prev_iteration_grad_ready_order_indices", "")) if self.ddp.static_graph else ""
        return BucketLayout(
            tuple(tuple(int(index) for index in bucket.split()) for bucket in buckets.split(",")),
            tuple(int(index) for index in fired.replace(",", " ").split()),
        )

    def _replay(self, layout: BucketLayout) -> None:
        ddp = cast(Any, self.ddp)
        parameters, sparse = ddp._build_params_for_reducer()
        order = [index for bucket in layout.buckets for index in bucket]
        if sorted(order) != list(range(len(parameters))):
            raise StateMismatch(f"the snapshot's DDP has {len(order)} parameters, this one {len(parameters)}")
        kept = [parameter.grad for parameter in parameters]
        for index, (parameter, is_sparse) in enumerate(zip(parameters, sparse, strict=True)):
            # The reducer takes a missing gradient for zeros. But it insists on sparse ones, and in the first backward
            # of a static graph it takes a parameter without gradient for one that no rank will ever use.
            kind = torch.sparse_coo if is_sparse else torch.strided
            parameter.grad = torch.zeros_like(parameter, layout=kind) if is_sparse or index in layout.fired else None
        if self.ddp.static_graph:
            order = [index for index in order for _ in range(layout.fired.count(index))]
            self._backward(order, ddp.reducer._delay_all_reduce)
            self.ddp._static_graph_delay_allreduce_enqueued = True
        self._backward(order)
        self.settle()
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient

    def _backward(self, order: list[int], at_end: Any = None) -> None:
        self.ddp.reducer.prepare_for_forward()
        self.ddp.reducer.prepare_for_backward([])
        with torch.enable_grad():
            start = torch.zeros((), requires_grad=True, device=next(self.ddp.parameters()).device)
            cast(Any, _DeclareReady).apply(start, self.ddp.reducer, order, at_end).backward()


class _DeclareReady(torch.autograd.Function):
    """Its backward tells the reducer that the gradients are ready, in the order given."""

    @staticmethod
    def forward(ctx: Any, start: torch.Tensor, reducer: Any, order: list[int], at_end: Any) -> torch.Tensor:
        ctx.reducer, ctx.order, ctx.at_end = reducer, order, at_end
        return start.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        for index in ctx.order:
            ctx.reducer._autograd_hook(index)
        if ctx.at_end is not None:
            torch.autograd.Variable._execution_engine.queue_callback(ctx.at_end)
        return gradient, None, None, None
