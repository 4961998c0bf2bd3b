"""What is in FSDP2's gradients between micro-batches, and which parameters get one in each.

FSDP2 lays the gradients that there are end to end and sums them by their places. Where a module's parameters have some
on one rank and others on another (experts that samples are routed to), it adds up what does not belong together, and
says nothing if the sizes happen to match. So what each rank had is compared once a step, before an optimizer uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ftrain.errors import ExactMisuse
from ftrain.exact.models import Models, all_alike
from ftrain.gradients import count_writes


def written(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Changes with each write to the parameter's gradient; None: it has none."""
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), count_writes(gradient))


def refuse_changed(parameters: Iterable[nn.Parameter], left: Sequence[tuple[int, int] | None]) -> None:
    """Raises ExactMisuse where gradients are not as the last micro-batch left them."""
    if any(written(parameter) != before for parameter, before in zip(parameters, left, strict=True)):
        raise ExactMisuse(
            "gradients were changed in the loop over ctx.microbatches, whose micro-batches add up in them: call "
            "optimizer.zero_grad() before it, and clip after it"
        )


class Presence:
    """Looks at a step's gradients after each micro-batch; does nothing where nothing is sharded.

    ``always_the_same``: also between a rank's own micro-batches, where their gradients are added up by their places.
    """

    def __init__(self, models: Models, *, always_the_same: bool = False) -> None:
        self._models, self._always_the_same = models, always_the_same
        self._modules = [_parameters_of(module) for module in models.sharded]
        self.begin()

    def begin(self) -> None:
        """A step begins, without gradients."""
        self._written: list[list[tuple[int, int] | None]] = [[None] * len(of) for of in self._modules]
        self._had: list[bytes | None] = [None] * len(self._modules)
        self._all = bytearray()

    def weigh(self) -> None:
        """A micro-batch's backward follows. Raises ExactMisuse if gradients were changed since the last one."""
        for parameters, left in zip(self._modules, self._written, strict=True):
            refuse_changed(parameters, left)

    def after(self) -> None:
        """A micro-batch's backward is over. Raises ExactMisuse where it should be as in others, and is not."""
        for place, parameters in enumerate(self._modules):
            before, now = self._written[place], list(map(written, parameters))
            has = bytes(a != b for a, b in zip(before, now, strict=True))
            self._written[place] = now
            self._all += has
            if any(has):
                had, self._had[place] = self._had[place], has
                if self._always_the_same and had not in (None, has):
                    raise ExactMisuse(
                        "parameters of a sharded module had gradients in some micro-batches of a step only: shard "
                        "them apart"
                    )

    def finish(self) -> None:
        """All are over. A collective. Raises ExactMisuse where ranks had gradients of different parameters."""
        if self._modules and not all_alike(bytes(self._all), self._models):
            raise ExactMisuse(
                "parameters of a sharded module had gradients on some ranks only (experts?), and FSDP2 sums by places: "
                "shard them apart, and let every micro-batch use all of them"
            )


def _parameters_of(module: Any) -> list[nn.Parameter]:
    groups = module._get_fsdp_state()._fsdp_param_groups
    return [parameter.sharded_param for group in groups for parameter in group.fsdp_params]
