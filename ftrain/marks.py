"""What has changed since an earlier capture, without looking at the bytes (DESIGN 5, marks of change).

``_version`` says nothing for fused and sharded optimizers (FACTS 7). So what an optimizer owns counts as changed by
every step of any optimizer, tracked or not, in which the parameter had a gradient, before the step or after it (a
closure makes its gradients in between). Optimizers that are not torch's own, and LBFGS, may keep state in their own
way: their steps change all of it. Besides, every tensor's ``_version`` counts: clipping, averaging, loading.

What marks cannot see, a write by way of ``.data``, is for the guard of the capture to find (flight.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ftrain.looks import Numbers
from ftrain.plan import Flags, Plan


class Steps:
    """Which parameters have been stepped with, seen by hooks that are common to all optimizers of the process."""

    def __init__(self, before: Callable[[], None]) -> None:
        """``before`` is called before each step: the last moment at which what optimizers own is as committed."""
        self._before_step = before
        self._stepped: set[bytes] = set()
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._note),
        ]

    def take(self) -> set[bytes]:
        """Which parameters were stepped with since the last call, each step's packed: see `unpacked`."""
        stepped, self._stepped = self._stepped, set()
        return stepped

    def close(self) -> None:
        """Let go of the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._before_step()
        self._note(optimizer, args, kwargs)

    def _note(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        own_way = isinstance(optimizer, torch.optim.LBFGS) or not type(optimizer).__module__.startswith("torch.optim.")
        ids = array("Q")
        for group in optimizer.param_groups:
            if own_way:
                ids.extend([id(p) for p in group["params"] if p.requires_grad or p.grad is not None])
            else:
                ids.extend([id(p) for p in group["params"] if p.grad is not None])
        self._stepped.add(ids.tobytes())


def unpacked(stepped: Iterable[bytes]) -> set[int]:
    """``id`` of each parameter. Packed, two thousand of them are compared at once; most steps are like the last."""
    return set(array("Q", b"".join(stepped)))


@dataclass
class Mark:
    """The marks of all tensors of a plan at one capture; equal marks, equal bytes."""

    versions: Numbers
    stamps: Numbers


class Marks:
    """The marks of one plan's tensors."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stamps = np.zeros(len(plan.tensors), np.int64)
        self._clock = 0
        self._stepped: set[bytes] = set()
        self._moved = np.empty(0, np.intp)

    def read(self, versions: Numbers, stepped: set[bytes]) -> Mark:
        """The marks now; ``versions``: the plan's, ``stepped``: what `Steps.take` gave since the last reading."""
        self._clock += 1
        if stepped != self._stepped:  # seldom
            self._stepped, self._moved = stepped, self._plan.moved_by(unpacked(stepped))
        self._stamps[self._moved] = self._clock
        return Mark(versions, self._stamps.copy())

    def changed(self, now: Mark, then: Mark | None) -> Flags:
        """The tensors whose bytes may differ from those of the earlier capture; without one, all."""
        if then is None:
            return np.ones(len(self._plan.tensors), bool)
        changed: Flags = (now.versions != then.versions) | (now.stamps != then.stamps) | self._plan.fickle
        return changed
