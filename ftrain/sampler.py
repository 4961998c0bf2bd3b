"""``ElasticSampler``: which samples each step trains on, as a function of the step alone.

The samples form one endless stream: a permutation of all for epoch 0, another for epoch 1, and so on, each drawn
from (seed, epoch). Step b takes ``global_batch`` of them, from ``b * global_batch`` on, across the end of an epoch
where it falls inside. Each rank takes an equal part, or one sample more. So every sample is seen exactly once per
epoch at any world size, and the whole state is one number: the position, counted in global batches.

With ``micro_batch`` a global batch is cut into numbered parts of that size, which `Context.microbatches` deals out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from ftrain.errors import BatchTooSmall, ExactMisuse, StateMismatch
from ftrain.exact.shares import Cut, Shares, is_whole

_EPOCHS_CACHED = 2


class ElasticSampler:
    """Batches of sample indices for this rank. Use it as ``DataLoader(..., batch_sampler=sampler)``, or `batch`.

    A ``DataLoader`` with workers fetches ahead of the training loop; batches that it holds back are not counted in
    `position`. Anything else that fetches ahead must be tracked in its own right. The newest iterator goes on from
    `position`, and older ones are over. With ``micro_batch`` it is `Context.microbatches` that counts.

    ``drop_last`` leaves out the last samples of each epoch's permutation where they do not fill a global batch.
    """

    def __init__(
        self,
        length: int,
        *,
        global_batch: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        micro_batch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not all(is_whole(number) and number >= 1 for number in (length, global_batch)):
            raise ValueError(f"{length=} and {global_batch=} must be positive whole numbers")
        if not is_whole(seed) or seed < 0:
            raise ValueError(f"{seed=} must be a whole number, 0 or more")
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"{rank=} must be one of {world_size=}, counted from 0")
        if drop_last and length < global_batch:
            raise ValueError(f"drop_last leaves nothing of {length} samples in global batches of {global_batch}")
        self._fixed = {"length": length, "global_batch": global_batch, "seed": seed, "shuffle": shuffle}
        self._length, self._global_batch, self._seed, self._shuffle = length, global_batch, seed, shuffle
        if drop_last:
            self._fixed["drop_last"] = True
        self._epoch_length = length - length % global_batch if drop_last else length
        self._rank, self._world_size = rank, world_size
        self._cut = None if micro_batch is None else Cut(global_batch, micro_batch)
        self._shares: Shares | None = None
        self._drawn = 0
        self._consumer: Mapping[str, Any] = {}
        """What the loader's iterator knows of itself. Its attributes only: it ends its workers when it is let go."""
        self._iterators = 0
        self._permutations: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def position(self) -> int:
        """How many global batches have been handed to the training loop."""
        return self._drawn - self.fetched_ahead

    @property
    def fetched_ahead(self) -> int:
        """How many global batches a loader has asked its workers for and not handed out yet."""
        return int(self._consumer.get("_send_idx", 0) - self._consumer.get("_rcvd_idx", 0))

    @property
    def epoch(self) -> int:
        """The epoch of the next sample."""
        return self.position * self._global_batch // self._epoch_length

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self._global_batch

    @property
    def cut(self) -> Cut | None:
        """How a global batch is cut into micro-batches; None: it is not."""
        return self._cut

    def batch(self, index: int) -> list[int]:
        """This rank's part of global batch ``index``; asking changes nothing."""
        rank, world_size = self.place()
        start = index * self._global_batch
        low = start + self._global_batch * rank // world_size
        high = start + self._global_batch * (rank + 1) // world_size
        return self._stream(low, high)

    def whole_batch(self, index: int) -> list[int]:
        """All ranks' parts of global batch ``index``."""
        return self._stream(index * self._global_batch, (index + 1) * self._global_batch)

    def indices(self, step: int, number: int) -> list[int]:
        """Micro-batch ``number`` of global batch ``step``; asking changes nothing."""
        assert self._cut is not None
        part, start = self._cut.samples(number), step * self._global_batch
        return self._stream(start + part.start, start + part.stop)

    def deal(self, shares: Shares) -> None:
        """For `Context.microbatches`: iterators give the micro-batches of these shares."""
        self._shares = shares

    def advance(self) -> None:
        """For `Context.microbatches`: a global batch has been trained on."""
        self._drawn += 1

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches from the current position on, without end."""
        if self._cut is not None:
            return self._draw_micro()
        self._drawn = self.position
        caller = sys._getframe(1).f_locals.get("self")
        self._consumer = vars(caller) if hasattr(caller, "_next_index") else {}
        self._iterators += 1
        return self._draw(self._complaint(caller), self._iterators)

    def __len__(self) -> int:
        """Global batches per epoch, the last one counted whole."""
        return -(-self._epoch_length // self._global_batch)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what must be the same for it to mean anything."""
        return {"position": self.position, **self._fixed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position. Raises StateMismatch if it is another stream's."""
        for name, value in {"drop_last": False, **self._fixed}.items():
            if state.get(name, False) != value:
                raise StateMismatch(f"the sampler's {name} is {value}, in the snapshot it is {state.get(name, False)}")
        if self.fetched_ahead:  # an iterator without workers has not looked yet where it is
            self._iterators += 1
        self._drawn = state["position"]
        self._consumer = {}

    def _complaint(self, loader: Any) -> ExactMisuse | None:
        """About batches that would come at another time than is counted, or that nothing can be computed of."""
        if not getattr(loader, "_in_order", True):
            said = "a loader with in_order=False hands out other batches than are counted as seen: leave it out"
            return ExactMisuse(said)
        _, world_size = self.place()
        if self._global_batch >= world_size:
            return None
        beside = max(1, rank_and_world(None, None)[1] // world_size)  # ranks of a model that share its batches
        return BatchTooSmall(self._global_batch, world_size, self._global_batch * beside)

    def _draw(self, complaint: ExactMisuse | None, iterator: int) -> Iterator[list[int]]:
        if complaint is not None:  # only now: a loader that is half made cannot end its workers in peace
            raise complaint
        while True:
            if iterator != self._iterators:
                raise ExactMisuse(
                    "this iterator is over: another one was made of its ElasticSampler, or its position was set while "
                    "workers fetched ahead; make a sampler for each loader"
                )
            indices = self.batch(self._drawn)
            self._drawn += 1  # before the batch is handed out: the position is that of the next one
            yield indices

    def _draw_micro(self) -> Iterator[list[int]]:
        if self._shares is None:
            raise ExactMisuse("micro-batches are handed out by ctx.microbatches(loader)")
        for step in count(self._drawn):
            for number in self._shares.own or range(1):  # a rank without any stands in with the first
                yield self.indices(step, number)

    def _stream(self, low: int, high: int) -> list[int]:
        taken: list[int] = []
        while low < high:
            epoch, offset = divmod(low, self._epoch_length)
            part = self._permutation(epoch)[offset : min(offset + high - low, self._epoch_length)]
            taken += part.tolist()
            low += len(part)
        return taken

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._permutations:
            while len(self._permutations) >= _EPOCHS_CACHED:
                del self._permutations[min(self._permutations)]
            order = np.arange(self._length)
            if self._shuffle:
                np.random.default_rng([self._seed, epoch]).shuffle(order)
            self._permutations[epoch] = order
        return self._permutations[epoch]

    def place(self) -> tuple[int, int]:
        """This rank's number among those that share the batches, and how many they are."""
        return rank_and_world(self._rank, self._world_size)


def rank_and_world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """What was given, or else what the default process group says; alone without one."""
    if rank is not None and world_size is not None:
        return rank, world_size
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
