"""The random number generators of a process: Python's, NumPy's global one, torch's on the CPU and on this GPU.

Their states are per rank, are captured at each commit, and are put back twice: when state is restored, and again
right before the first step, so that what a script draws in between (building a model, shuffling) does not matter.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of all generators, as plain values."""
    version, words, gauss = random.getstate()
    state = {
        "python": (version, array("I", words).tobytes(), gauss),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(array("I", words)), gauss))
    np.random.set_state(state["numpy"])
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
