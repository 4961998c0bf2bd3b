"""The loop over a step's micro-batches: deals them out, weighs their losses, brings their gradients together.

All ranks go through it side by side. A rank without a number in a round that the others need it for (FSDP2 gathers
weights in every forward; DDP sums at least once) goes through a stand-in: data that it has, or the step's first
micro-batch, with the weight zero.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ftrain.errors import ExactMisuse
from ftrain.exact.clip import clip_grad_norm
from ftrain.exact.limits import NOISE, generators, refuse_across_ranks, warn_of_limits
from ftrain.exact.loaders import Readings, Source, source_of
from ftrain.exact.models import Models, all_alike, find_models
from ftrain.exact.shares import Cut, Shares
from ftrain.exact.sums import Summing, Sums
from ftrain.exact.trees import Trees
from ftrain.sampler import ElasticSampler

LEFT_EARLY = (
    "a loop over ctx.microbatches was left early: its gradients are not complete; go through all of it on every rank, "
    "and leave out optimizer.step() after it where a step is to be skipped"
)
_SAID_MAX = 200


@dataclass(frozen=True)
class MicroBatch:
    """A part of the global batch, the same at any world size."""

    number: int
    """Its place in the step's global batch, from 0."""
    samples: int
    """How many samples it counts for; 0: a stand-in, here because other ranks still have one."""
    data: Any
    """What the loader made of it."""
    indices: tuple[int, ...] = ()
    """Which samples of the data set it counts (none of a stand-in, or of a stream)."""


class _Pass:
    """One loop over a step's micro-batches."""

    def __init__(self, shares: Shares, global_batch: int) -> None:
        self.shares, self.global_batch = shares, global_batch
        self.now: MicroBatch | None = None
        """The micro-batch at hand; None outside the loop."""
        self.weighed = 0
        """So many of them went through `weigh`."""
        self.is_over = False
        """The gradients are complete; a loop that ended before that was left early."""
        self.losses: dict[int, Tensor] = {}
        """By the number of the micro-batch, each times its samples."""
        self.is_weighed = False
        """The one at hand."""

    def begin(self, micro: MicroBatch) -> None:
        """This one follows."""
        self.now, self.is_weighed = micro, False

    def weigh(self, micro: MicroBatch, loss: Tensor, samples: int) -> Tensor:
        """The loss of the micro-batch at hand as a sum over its samples. Raises ExactMisuse for other samples."""
        if (samples > 0) != (micro.samples > 0) or samples > micro.samples:
            raise ExactMisuse(
                f"ctx.scale_loss was given samples={samples} for a micro-batch that counts for {micro.samples}: "
                "give micro.samples, which is 0 for a stand-in"
            )
        self.weighed += not self.is_weighed
        self.is_weighed = True
        if samples:
            weighed = loss.detach().double() * samples  # which rounds nothing
            before = self.losses.get(micro.number)
            self.losses[micro.number] = weighed if before is None else before + weighed
        return loss * samples


class Exact:
    """What `Context` keeps for exact batches; nothing is looked up before it is asked for."""

    def __init__(self, tracked: Mapping[str, Any], *, deterministic: bool) -> None:
        self._tracked = tracked
        self._deterministic = deterministic
        self._models: Models | None = None
        self._summing: Sums | Trees | None = None
        self._readings = Readings(tracked)
        self._pass: _Pass | None = None
        """The last one."""
        self._watches_noise = deterministic
        self._step_begun: int | None = None
        self._looked_for_leftovers = True
        self._alike: list[Source] = []
        """Known to be the same on all ranks."""
        self._is_used = False

    @property
    def number(self) -> int | None:
        """The micro-batch at hand; None outside the loop."""
        now = None if self._pass is None else self._pass.now
        return None if now is None else now.number

    def check_committed(self) -> None:
        """A step is committed. Raises ExactMisuse if it was half a batch's, or not bit-exact, though the job asked."""
        self._refuse_left_early()
        if self._deterministic and not self._is_used:
            raise ExactMisuse("--deterministic-reduction has an effect only on gradients made in ctx.microbatches")

    def microbatches(self, loader: Any) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the next global batch; when they are over the gradients are complete.

        Raises ExactMisuse for all that would make them another batch's, or incomplete.
        """
        source = source_of(loader)
        models, summing = self._prepared()
        cut, shares = self._dealt(source, models, summing)
        self._judge(models, shares)
        self._refuse_unlike(source, models)
        reading = self._readings.of(loader, source, shares)
        drawn = generators() if self._watches_noise else None
        summing.begin(shares, cut.global_batch)
        current = self._pass = _Pass(shares, cut.global_batch)
        rounds = shares.rounds_max if models.sharded else max(1, len(shares.own))
        data: Any = None
        for turn in range(rounds):
            real = turn < len(shares.own)
            if real or turn == 0:
                data = reading.next()
            number = shares.own[turn] if real else None
            summing.before(turn, number, last=turn == rounds - 1)
            micro = _micro_batch(source, cut, number, data)
            current.begin(micro)
            yield micro
            summing.after(number)
        current.now = None
        summing.finish()
        if current.weighed < rounds and any(parameter.grad is not None for parameter in models.parameters):
            raise ExactMisuse(
                f"{rounds - current.weighed} of {rounds} micro-batches did not go through ctx.scale_loss: call "
                "ctx.scale_loss(loss, micro.samples).backward() for each, also where samples is 0"
            )
        if drawn is not None and drawn != generators():
            self._watches_noise = False
            warnings.warn(NOISE, stacklevel=2)
        source.advance()
        reading.position += 1
        current.is_over = True

    def scale_loss(self, loss: Tensor, samples: int, step: int) -> Tensor:
        """A mean over ``samples``, weighed so that gradients become the mean over the global batch."""
        models, summing = self._prepared()
        if self._pass is None or self._pass.now is None:
            return self._scale_outside(loss, samples, step, models, summing)
        if not self._pass.is_weighed:
            summing.weigh()
        return self._pass.weigh(self._pass.now, loss, samples)

    def global_loss(self) -> float:
        """The mean of the last step's losses over its global batch. A collective. Raises ExactMisuse within a loop."""
        last = self._pass
        if last is None or last.now is not None:
            raise ExactMisuse("ctx.global_loss comes after a loop over ctx.microbatches")
        models, _ = self._prepared()
        device = models.parameters[0].device
        sums = torch.zeros(last.shares.count, dtype=torch.float64, device=device)
        for number, loss in last.losses.items():
            sums[number] = loss
        for group in models.groups if last.shares.world_size > 1 else ():
            dist.all_reduce(sums, group=group)  # each entry is one rank's: nothing is rounded
        return math.fsum(sums.tolist()) / last.global_batch

    def clip_grad_norm(self, max_norm: float) -> float:
        """Clip the tracked models' gradients by a norm that does not depend on the world. A collective.

        Raises ExactMisuse within a loop.
        """
        if self.number is not None:
            raise ExactMisuse(
                "ctx.clip_grad_norm comes after the loop over ctx.microbatches: gradients add up until then"
            )
        return clip_grad_norm(self._prepared()[0], max_norm)

    def _dealt(self, source: Source, models: Models, summing: Summing) -> tuple[Cut, Shares]:
        """The micro-batches of a step, and who computes which."""
        cut = source.cut
        if cut is None:
            raise ExactMisuse("ctx.microbatches needs micro-batches: ElasticSampler(..., micro_batch=N)")
        self._refuse_left_early()
        rank, world = source.place()
        if world != models.world_size:
            raise ExactMisuse(
                f"data is dealt to {world} ranks and gradients are summed over {models.world_size}: "
                "give ElasticSampler the rank and world_size of the data-parallel group"
            )
        return cut, Shares(cut.count, rank, world, summing.in_turn)

    def _judge(self, models: Models, shares: Shares) -> None:
        """What can be seen of the script's limits, when training begins."""
        if not self._is_used:
            refuse_across_ranks(self._tracked.values())
            if self._deterministic and shares.rank == 0:
                warn_of_limits(self._tracked.values(), models)
        self._is_used = True

    def _refuse_unlike(self, source: Source, models: Models) -> None:
        """Raises ExactMisuse where ranks draw from different streams. A collective, once for each source."""
        if any(source is one for one in self._alike):
            return
        fixed = {name: value for name, value in source.state_dict().items() if name != "position"}
        if not all_alike(repr(sorted(fixed.items())).encode(), models):
            raise ExactMisuse(
                f"the {type(source).__name__} is not the same on all ranks: give each the same "
                f"{', '.join(sorted(fixed))} (here: {_short(fixed)})"
            )
        self._alike.append(source)

    def _refuse_left_early(self) -> None:
        if self._pass is not None and not self._pass.is_over:
            raise ExactMisuse(LEFT_EARLY)

    def _scale_outside(self, loss: Tensor, samples: int, step: int, models: Models, summing: Summing) -> Tensor:
        if not isinstance(summing, Sums):
            raise ExactMisuse("bit-exact mode needs ctx.microbatches: without it a rank's batch depends on the world")
        samplers = [tracked for tracked in self._tracked.values() if isinstance(tracked, ElasticSampler)]
        sizes = {sampler.global_batch for sampler in samplers}
        if len(sizes) != 1:
            raise ExactMisuse("ctx.scale_loss needs one global batch: ctx.track the ElasticSampler first")
        (global_batch,) = sizes
        if self._step_begun != step:
            self._step_begun, self._looked_for_leftovers = step, False
            for sampler in samplers:
                self._refuse_unlike(sampler, models)
            summing.expect(global_batch)
        if models.ddps or models.sharded:
            weighed = loss * samples
            if weighed.requires_grad:  # scripts call zero_grad between the forward and the backward, too
                weighed.register_hook(lambda _: self._look_for_leftovers(summing))  # type: ignore[no-untyped-call]
            return weighed
        if models.world_size > 1:
            raise ExactMisuse("nobody sums this model's gradients: wrap it in DDP or fully_shard it")
        return loss * samples / global_batch

    def _look_for_leftovers(self, summing: Sums) -> None:
        if not self._looked_for_leftovers:
            self._looked_for_leftovers = True
            summing.look_for_leftovers()

    def _watch(self, optimizer: torch.optim.Optimizer, models: Models) -> None:
        """What a tracked optimizer steps must be complete."""
        optimizer.register_step_pre_hook(lambda *_: self._refuse_step())
        known = set(map(id, models.parameters))
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if id(parameter) not in known and parameter.is_leaf and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_refuse_stray)

    def _refuse_step(self) -> None:
        if self.number is not None:
            raise ExactMisuse(
                "optimizer.step() in a loop over ctx.microbatches: call it after the loop, when gradients are complete"
            )

    def _prepared(self) -> tuple[Models, Sums | Trees]:
        if self._models is None or self._summing is None:
            self._models = find_models(self._tracked.values())
            self._summing = Trees(self._models) if self._deterministic else Sums(self._models)
            for tracked in self._tracked.values():
                if isinstance(tracked, torch.optim.Optimizer):
                    self._watch(tracked, self._models)
        return self._models, self._summing


def _refuse_stray(parameter: Tensor) -> None:
    raise ExactMisuse(
        f"a tracked optimizer has a parameter of shape {tuple(parameter.shape)} that is no tracked model's, so nobody "
        "sums its gradient: make it part of a module that DDP or fully_shard wraps, and track that"
    )


def _short(fixed: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name}={value}" for name, value in sorted(fixed.items()))
    return said if len(said) < _SAID_MAX else f"{said[:_SAID_MAX]}..."


def _micro_batch(source: Source, cut: Cut, number: int | None, data: Any) -> MicroBatch:
    if number is None:
        return MicroBatch(0, 0, data)
    return MicroBatch(number, len(cut.samples(number)), data, tuple(source.indices(source.position, number)))
