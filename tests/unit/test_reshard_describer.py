"""What a rank's snapshots say of their state, and what they cannot say."""

from __future__ import annotations

import warnings
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from ftrain.capture import Capturer
from ftrain.logical.rules import Rules
from ftrain.reshard.describer import Describer


class Line:
    """Nobody listens."""

    def captured(self, *_: object) -> None: ...

    def sealed(self, *_: object) -> None: ...

    def skip(self, *_: object) -> None: ...


def said_of(objects: dict[str, Any], describer: Describer | None = None) -> Any:
    """A description, or why there is none."""
    capturer = Capturer(0, 1, set, 0, Line(), describer or Describer(0, 1))
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


def test_what_fails_once_is_tried_again_what_ranks_hold_unlike_is_not() -> None:
    """Given a restart from a snapshot whose description had failed, and from one whose layout had proved wrong."""
    describer, odd = Describer(0, 1), {"net": nn.Linear(2, 3)}
    describer.rules = Rules({"net.weight": "world: shard(0, parts=[5])"})
    with pytest.warns(UserWarning, match="no other number of ranks can resume this state: describing it failed: "):
        reason = said_of(odd, describer)
    describer.rules = None
    describer.resume(reason)
    assert (describer.inherited, describer.refused) == (reason, None)
    assert isinstance(said_of(odd, describer), list)
    describer.resume("net.bias: by its layout ranks 0, 1 hold the same")
    assert said_of(odd, describer) == describer.inherited == "net.bias: by its layout ranks 0, 1 hold the same"
