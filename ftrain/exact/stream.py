"""``ElasticStream``: data that is read in order from shards, dealt out so that the world does not matter.

Micro-batch j of every step takes its samples from lane j: shards j, j + M, j + 2 M, ... of a step's M micro-batches,
read one after the other, in an order that is drawn anew for each epoch of the lane. Who computes micro-batch j reads
lane j; since shards say how long they are, where a lane stands after so many steps is arithmetic, and the whole state
is one number. (MosaicML's StreamingDataset reaches the same with canonical nodes.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ftrain.errors import ExactMisuse, StateMismatch
from ftrain.exact.shares import Cut, Shares, is_whole
from ftrain.sampler import rank_and_world


class ElasticStream(IterableDataset[list[Any]]):
    """Micro-batches, as lists of samples: ``DataLoader(stream, batch_size=None, collate_fn=default_collate)``.

    Within an epoch of its lane each sample comes once; lanes of unequal length begin their epochs at different steps.

    Args:
        lengths: how many samples each shard holds; at least as many shards as a step has micro-batches.
        open_shard: gives the samples of shard i from number ``start`` on: ``open_shard(i, start)``.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        open_shard: Callable[[int, int], Iterator[Any]],
        *,
        global_batch: int,
        micro_batch: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not is_whole(seed) or seed < 0:
            raise ValueError(f"{seed=} must be a whole number, 0 or more")
        self._cut = Cut(global_batch, micro_batch)
        lanes = self._cut.count
        if len(lengths) < lanes or min(lengths) < 1:
            raise ValueError(f"{len(lengths)} shards for {lanes} micro-batches: give each at least one, none empty")
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        self._lengths, self._open_shard = list(lengths), open_shard
        self._seed, self._shuffle = seed, shuffle
        self._fixed = {
            "lengths": self._lengths,
            "global_batch": global_batch,
            "micro_batch": micro_batch,
            "seed": seed,
            "shuffle": shuffle,
        }
        self._rank, self._world_size = rank, world_size
        self._shares: Shares | None = None
        self.position = 0
        """How many global batches have been trained on."""

    @property
    def cut(self) -> Cut:
        """How a global batch is cut into micro-batches."""
        return self._cut

    def place(self) -> tuple[int, int]:
        """This rank's number among those that share the batches, and how many they are."""
        return rank_and_world(self._rank, self._world_size)

    def deal(self, shares: Shares) -> None:
        """For `Context.microbatches`: iterators give the micro-batches of these shares."""
        self._shares = shares

    def indices(self, step: int, number: int) -> list[int]:
        """Streams do not number their samples."""
        return []

    def advance(self) -> None:
        """For `Context.microbatches`: a global batch has been trained on."""
        self.position += 1

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean anything."""
        return {"position": self.position, **self._fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises StateMismatch if it is another stream's."""
        for name, value in self._fixed.items():
            if state.get(name) != value:
                raise StateMismatch(f"the stream's {name} is {value}, in the snapshot it is {state.get(name)}")
        self.position = state["position"]

    def __iter__(self) -> Iterator[list[Any]]:
        """This rank's micro-batches; of a loader with workers each makes every so many-th, as the loader takes them."""
        if self._shares is None:
            raise ExactMisuse("micro-batches are handed out by ctx.microbatches(loader)")
        own = self._shares.own or range(1)  # a rank without any stands in with the first
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        lanes, begin = {number: _Lane(self, number) for number in own}, self.position
        for turn in islice(count(), first, None, every):
            step, place = divmod(turn, len(own))
            part = self._cut.samples(own[place])
            yield lanes[own[place]].read((begin + step) * len(part), len(part))

    def samples_of(self, lane: int, start: int) -> Iterator[tuple[int, int, int]]:
        """Where a lane's samples lie from number ``start`` on, without end: shard, first sample, how many follow."""
        shards = range(lane, len(self._lengths), self._cut.count)
        epoch, offset = divmod(start, sum(self._lengths[shard] for shard in shards))
        for drawn in count(epoch):
            order = list(shards)
            if self._shuffle:
                np.random.default_rng([self._seed, lane, drawn]).shuffle(order)
            ends = list(accumulate(self._lengths[shard] for shard in order))
            for place in range(bisect_right(ends, offset), len(order)):
                skipped = offset - (ends[place] - self._lengths[order[place]])
                yield order[place], skipped, self._lengths[order[place]] - skipped
                offset = ends[place]
            offset = 0

    def read_from(self, lane: int, start: int) -> Iterator[Any]:
        """A lane's samples from number ``start`` on, without end."""
        for shard, first, left in self.samples_of(lane, start):
            given = 0
            for sample in islice(self._open_shard(shard, first), left):
                yield sample
                given += 1
            if given < left:
                missing = left - given
                raise ExactMisuse(f"shard {shard} ended {missing} samples before its length of {self._lengths[shard]}")


class _Lane:
    """Reads a lane on from where it was left; it is opened anew where another worker has read in between."""

    def __init__(self, stream: ElasticStream, lane: int) -> None:
        self._stream, self._lane = stream, lane
        self._next = -1
        self._samples: Iterator[Any] = iter(())

    def read(self, start: int, how_many: int) -> list[Any]:
        if start != self._next:
            self._samples = self._stream.read_from(self._lane, start)
        self._next = start + how_many
        return list(islice(self._samples, how_many))
