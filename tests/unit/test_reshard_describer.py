"""What a rank's snapshots say of their state, and what they cannot say."""

from __future__ import annotations

import warnings
from typing import Any

import msgspec
import torch
from torch import nn

from ftrain.capture import Capturer
from ftrain.reshard.describer import Describer


class Line:
    """Nobody listens."""

    def captured(self, *_: object) -> None: ...

    def sealed(self, *_: object) -> None: ...

    def skip(self, *_: object) -> None: ...


def said_of(objects: dict[str, Any]) -> Any:
    """A description, or why there is none."""
    capturer = Capturer(0, 1, set, 0, Line(), Describer(0, 1))
    capturer.track(objects)
    return msgspec.msgpack.decode(capturer.collect(lambda _: {}).plan.logical)


def test_parameters_that_only_an_optimizer_has_are_state_like_any_other() -> None:
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    masters = nn.ParameterList([parameter.detach().float() for parameter in model.parameters()])
    optimizer = torch.optim.AdamW(masters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for objects, expected in (
            ({"model": model, "opt": optimizer}, ["opt.params.0", "opt.params.1"]),
            ({"model": model, "masters": masters, "opt": optimizer}, ["masters.0", "masters.1"]),
        ):
            rank, tensors, *_ = said_of(objects)
            assert (rank, [tensor[0] for tensor in tensors]) == (0, ["model.weight", "model.bias", *expected])
            *_, extents = tensors[-1]
            assert extents[0][1] == masters[1].nbytes  # all of it is in this rank's data


def test_a_parameter_without_elements_is_one_all_the_same() -> None:
    model = nn.ParameterDict({"full": torch.zeros(2), "none": torch.zeros(0, 4), "nothing": torch.zeros(0, 4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, tensors, *_ = said_of({"model": model, "opt": torch.optim.SGD(model.parameters())})
    assert {tensor[0] for tensor in tensors} == {"model.full", "model.none", "model.nothing"}
