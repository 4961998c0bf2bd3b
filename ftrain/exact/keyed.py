"""Randomness that belongs to a sample or a micro-batch, and not to the rank that computes it.

A key is a tuple of numbers and words, such as (seed, step, micro-batch, "dropout"). Its seed is made by hashing, so
that neighbouring keys give unrelated streams, nothing has to be drawn in order, and no state is to be kept: whoever
computes micro-batch 7 of step 300, at any world size and after any number of faults, meets the same noise.
"""

from __future__ import annotations

import hashlib
import json
from operator import index
from types import TracebackType

import torch


def derive_seed(seed: int, *key: int | str | None) -> int:
    """A seed of 64 bits for this key.

    The first eight bytes, big-endian, of the SHA-256 of ``["ftrain rng 1", seed, *key]``, written as JSON without
    spaces in ASCII: fixed for all versions. For use where there is no context, as in the workers of a DataLoader.

    Raises TypeError for a part that is neither a whole number nor a string.
    """
    parts = [part if part is None or isinstance(part, str) else index(part) for part in (seed, *key)]
    written = json.dumps(["ftrain rng 1", *parts], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(written).digest()[:8], "big")


class KeyedRandom:
    """The randomness of one key: a seed, generators, or ``with`` it torch's default generators.

    On the CPU torch uses the lower 32 bits of a seed, on CUDA all 64.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        """64 bits; give it to any other generator."""
        self._outside: torch.Tensor | None = None
        self._outside_cuda: torch.Tensor | None = None

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new generator of torch's, at the beginning of this key's stream."""
        return torch.Generator(device).manual_seed(self.seed)

    def __enter__(self) -> KeyedRandom:
        """Seed the default generators, the CPU's and that of the current CUDA device."""
        if self._outside is not None:
            raise RuntimeError("this key's randomness is entered already")
        self._outside = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._outside_cuda = torch.cuda.get_rng_state()
            torch.cuda.manual_seed(self.seed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the default generators back to where they were."""
        assert self._outside is not None
        torch.set_rng_state(self._outside)
        if self._outside_cuda is not None:
            torch.cuda.set_rng_state(self._outside_cuda)
        self._outside = self._outside_cuda = None
