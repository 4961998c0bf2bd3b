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
from ftrain.exact.models import Models, find_models
from ftrain.exact.shares import Cut, Shares
from ftrain.exact.sums import Summing, Sums
from ftrain.exact.trees import Trees
from ftrain.sampler import ElasticSampler

LEFT_EARLY = "a loop over ctx.microbatches was left early: its gradients are not complete"


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


class Exact:
    """What `Context` keeps for exact batches; nothing is looked up before it is asked for."""

    def __init__(self, tracked: Mapping[str, Any], *, deterministic: bool) -> None:
        self._tracked = tracked
        self._deterministic = deterministic
        self._models: Models | None = None
        self._summing: Sums | Trees | None = None
        self._readings = Readings(tracked)
        self._now: MicroBatch | None = None
        self._is_weighed = False
        """The micro-batch at hand went through `scale_loss`."""
        self._watches_noise = deterministic
        self._left_early = False
        self._step_begun: int | None = None
        self._losses: dict[int, Tensor] = {}
        self._shares: Shares | None = None
        self._global_batch = 0
        self.used = False

    @property
    def number(self) -> int | None:
        """The micro-batch at hand; None outside the loop."""
        return None if self._now is None else self._now.number

    def check_committed(self) -> None:
        """A step is committed. Raises ExactMisuse if it was half a batch's, or not bit-exact, though the job asked."""
        if self._left_early:
            raise ExactMisuse(LEFT_EARLY)
        if self._deterministic and not self.used:
            raise ExactMisuse("--deterministic-reduction has an effect only on gradients made in ctx.microbatches")

    def microbatches(self, loader: Any) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the next global batch; when they are over the gradients are complete."""
        source = source_of(loader)
        models, summing = self._prepared()
        cut, shares = self._dealt(source, models, summing)
        self._judge(models, shares)
        reading = self._readings.of(loader, source, shares)
        drawn = generators() if self._watches_noise else None
        self._shares, self._global_batch, self._losses = shares, cut.global_batch, {}
        summing.begin(shares, cut.global_batch)
        self._left_early = True
        rounds = shares.rounds_max if models.sharded else max(1, len(shares.own))
        data: Any = None
        weighed = 0
        for turn in range(rounds):
            real = turn < len(shares.own)
            if real or turn == 0:
                data = reading.next()
            number = shares.own[turn] if real else None
            summing.before(turn, number, last=turn == rounds - 1)
            self._now, self._is_weighed = _micro_batch(source, cut, number, data), False
            yield self._now
            weighed += self._is_weighed
            summing.after(number)
        self._now = None
        summing.finish()
        if weighed < rounds and any(parameter.grad is not None for parameter in models.parameters):
            raise ExactMisuse(
                f"{rounds - weighed} of {rounds} micro-batches did not go through ctx.scale_loss: call "
                "ctx.scale_loss(loss, micro.samples).backward() for each, also where samples is 0"
            )
        if drawn is not None and drawn != generators():
            self._watches_noise = False
            warnings.warn(NOISE, stacklevel=2)
        source.advance()
        reading.position += 1
        self._left_early = False

    def scale_loss(self, loss: Tensor, samples: int, step: int) -> Tensor:
        """A mean over ``samples``, weighed so that gradients become the mean over the global batch."""
        models, summing = self._prepared()
        if self._now is None:
            return self._scale_outside(loss, samples, step, models, summing)
        if (samples > 0) != (self._now.samples > 0) or samples > self._now.samples:
            raise ExactMisuse(
                f"ctx.scale_loss was given samples={samples} for a micro-batch that counts for {self._now.samples}: "
                "give micro.samples, which is 0 for a stand-in"
            )
        self._is_weighed = True
        if samples:
            weighed = loss.detach().double() * samples  # which rounds nothing
            before = self._losses.get(self._now.number)
            self._losses[self._now.number] = weighed if before is None else before + weighed
        return loss * samples

    def global_loss(self) -> float:
        """The mean of the last step's losses over its global batch. A collective."""
        if self._shares is None or self._now is not None:
            raise ExactMisuse("ctx.global_loss comes after a loop over ctx.microbatches")
        models, _ = self._prepared()
        device = models.parameters[0].device
        sums = torch.zeros(self._shares.count, dtype=torch.float64, device=device)
        for number, loss in self._losses.items():
            sums[number] = loss
        for group in models.groups if self._shares.world_size > 1 else ():
            dist.all_reduce(sums, group=group)  # each entry is one rank's: nothing is rounded
        return math.fsum(sums.tolist()) / self._global_batch

    def clip_grad_norm(self, max_norm: float) -> float:
        """Clip the tracked models' gradients by a norm that does not depend on the world. A collective."""
        return clip_grad_norm(self._prepared()[0], max_norm)

    def _dealt(self, source: Source, models: Models, summing: Summing) -> tuple[Cut, Shares]:
        """The micro-batches of a step, and who computes which."""
        cut = source.cut
        if cut is None:
            raise ExactMisuse("ctx.microbatches needs micro-batches: ElasticSampler(..., micro_batch=N)")
        if self._left_early:
            raise ExactMisuse(LEFT_EARLY)
        rank, world = source.place()
        if world != models.world_size:
            raise ExactMisuse(
                f"data is dealt to {world} ranks and gradients are summed over {models.world_size}: "
                "give ElasticSampler the rank and world_size of the data-parallel group"
            )
        return cut, Shares(cut.count, rank, world, summing.in_turn)

    def _judge(self, models: Models, shares: Shares) -> None:
        """What can be seen of the script's limits, when training begins."""
        if not self.used:
            refuse_across_ranks(self._tracked.values())
            if self._deterministic and shares.rank == 0:
                warn_of_limits(self._tracked.values(), models)
        self.used = True

    def _scale_outside(self, loss: Tensor, samples: int, step: int, models: Models, summing: Summing) -> Tensor:
        if not isinstance(summing, Sums):
            raise ExactMisuse("bit-exact mode needs ctx.microbatches: without it a rank's batch depends on the world")
        sizes = {tracked.global_batch for tracked in self._tracked.values() if isinstance(tracked, ElasticSampler)}
        if len(sizes) != 1:
            raise ExactMisuse("ctx.scale_loss needs one global batch: ctx.track the ElasticSampler first")
        (global_batch,) = sizes
        if self._step_begun != step:
            self._step_begun = step
            summing.expect(global_batch)
        if models.ddps or models.sharded:
            return loss * samples
        if models.world_size > 1:
            raise ExactMisuse("nobody sums this model's gradients: wrap it in DDP or fully_shard it")
        return loss * samples / global_batch

    def _prepared(self) -> tuple[Models, Sums | Trees]:
        if self._models is None or self._summing is None:
            self._models = find_models(self._tracked.values())
            self._summing = Trees(self._models) if self._deterministic else Sums(self._models)
        return self._models, self._summing


def _micro_batch(source: Source, cut: Cut, number: int | None, data: Any) -> MicroBatch:
    if number is None:
        return MicroBatch(0, 0, data)
    return MicroBatch(number, len(cut.samples(number)), data, tuple(source.indices(source.position, number)))
