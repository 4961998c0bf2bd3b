"""The loaders that a script goes through its micro-batches with: which are possible, and where each is read.

A loader's workers fetch ahead, so one iterator serves the whole training. Where another loader is given for the same
sampler, or the sampler is put to another place, a new iterator begins there and the one before ends.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ftrain.errors import ExactMisuse
from ftrain.exact.shares import Shares
from ftrain.exact.stream import ElasticStream
from ftrain.sampler import ElasticSampler

Source = ElasticSampler | ElasticStream
"""What says which samples a loader's micro-batches are made of."""


@dataclass
class Reading:
    """Where a source is read from now."""

    loader: Any
    batches: Iterator[Any]
    position: int
    """The next global batch that comes out."""

    def next(self) -> Any:
        """The next micro-batch."""
        try:
            return next(self.batches)
        except StopIteration:
            raise ExactMisuse("the loader came to an end: its data set or its workers must go on without one") from None


class Readings:
    """A reading for each source."""

    def __init__(self, tracked: Mapping[str, Any]) -> None:
        self._tracked = tracked
        self._now: dict[int, Reading] = {}

    def of(self, loader: Any, source: Source, shares: Shares) -> Reading:
        """The source's, by this loader, from where the source is on."""
        reading = self._now.get(id(source))
        if reading is not None and reading.loader is loader and reading.position == source.position:
            return reading
        if reading is None and all(tracked is not source for tracked in self._tracked.values()) and shares.rank == 0:
            warnings.warn(
                f"the {type(source).__name__} of ctx.microbatches is not tracked: after a fault it would begin anew, "
                "unless an object of your own keeps its state",
                stacklevel=3,
            )
        persistent = getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is not None
        if persistent and isinstance(source, ElasticStream):
            raise ExactMisuse("an ElasticStream was moved, and workers that persist do not know: make a new loader")
        self._now.pop(id(source), None)  # its workers end before others begin
        source.deal(shares)
        with torch.random.fork_rng(devices=[]):  # a loader draws when it begins: not from what is state
            self._now[id(source)] = Reading(loader, iter(loader), source.position)
        return self._now[id(source)]


def source_of(loader: Any) -> Source:
    """What a loader's batches are made of. Raises ExactMisuse where that, or their order, is not ours."""
    for source in (getattr(loader, "batch_sampler", None), getattr(loader, "dataset", None)):
        if isinstance(source, ElasticSampler | ElasticStream):
            _refuse_other_batches(loader, source)
            return source
    raise ExactMisuse(
        "ctx.microbatches needs a loader whose order is ours: DataLoader(data, batch_sampler=ElasticSampler(...)), or "
        "DataLoader(ElasticStream(...), batch_size=None); other samplers' order depends on the world"
    )


def _refuse_other_batches(loader: Any, source: Source) -> None:
    """What a loader hands out must be the micro-batches, one by one."""
    if not getattr(loader, "in_order", True):
        raise ExactMisuse("ctx.microbatches takes batches in the order of their numbers: leave out in_order=False")
    if isinstance(source, ElasticStream) and getattr(loader, "batch_size", None) is not None:
        raise ExactMisuse(
            "an ElasticStream makes the batches itself: DataLoader(stream, batch_size=None, collate_fn=default_collate)"
        )
