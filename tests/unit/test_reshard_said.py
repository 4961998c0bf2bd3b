"""What an old rank said of itself: taken apart only as far as it is wanted, and refused where it is none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from ftrain.capture import FORMAT, Manifest
from ftrain.encoding import Packer
from ftrain.errors import StateMismatch, StateUndescribed
from ftrain.layout import Kind, lay_out
from ftrain.logical.state import RankState
from ftrain.outcome import describe_failure
from ftrain.reading import items_of
from ftrain.reshard.said import Said

TENSOR = torch.arange(6.0).reshape(2, 3)


def manifest(rank: int = 1, logical: Any = None, **changed: Any) -> bytes:
    tree = {
        "gradients": {}, "buckets": {0: {"parameters": 7}}, "rng": {"torch": b"x"},
        "objects": {"model": {"state": {"w": TENSOR, "b": 2}}},
    }  # fmt: skip
    layout = msgspec.msgpack.encode(lay_out([TENSOR], ["w"], [Kind()], 2))
    tail = msgspec.msgpack.encode(lay_out([], [], [], 1))
    described = msgspec.msgpack.encode(RankState(rank, ()) if logical is None else logical)
    packed = Packer(lambda tensor, path: 0).pack(tree | changed)
    return msgspec.msgpack.encode(Manifest(FORMAT, rank, 5, *map(msgspec.Raw, (layout, tail, described)), packed))


def test_values_come_as_they_were_and_tensors_as_stand_ins() -> None:
    said = Said(1, 2, manifest())
    assert said.values("buckets") == {0: {"parameters": 7}}
    assert said.values("rng") == {"torch": b"x"}
    assert list(said.objects) == ["model"]
    state = said.value(said.state_of("model"))
    assert state["b"] == 2
    assert state["w"] is said.contents.stand_ins[0]
    assert state["w"].is_meta


def test_equal_values_are_equal_bytes_whoever_says_them() -> None:
    one, other = Said(0, 2, manifest(0)), Said(1, 2, manifest(1, rng={"torch": b"y"}))
    assert one.state_of("model") == other.state_of("model")
    assert one.encoded("buckets") == other.encoded("buckets")
    assert one.encoded("rng") != other.encoded("rng")


def test_what_is_no_manifest_of_that_rank_is_refused() -> None:
    with pytest.raises(StateMismatch, match=r"rank 1 of 2 .* expected was rank 0 of 2"):
        Said(0, 2, manifest(1))
    with pytest.raises(StateMismatch, match="expected was rank 1 of 3"):
        Said(1, 3, manifest(1))
    with pytest.raises(StateUndescribed) as undescribed:
        Said(1, 2, manifest(1, logical="a lazy module"))
    told = describe_failure(undescribed.value, None)
    assert told.error.endswith("rank 1 could not describe its state for another world: a lazy module")
    assert told.traceback == ""  # the line says all
    with pytest.raises(StateMismatch, match="cannot be read"):
        Said(1, 2, manifest(1)[:-3])
    with pytest.raises(StateMismatch, match="cannot be read"):
        Said(1, 2, manifest(1, objects=[1, 2]))


@pytest.mark.parametrize("encoded", [b"", b"\xc0", msgspec.msgpack.encode([2, "a"]), msgspec.msgpack.encode([2, 1, 2])])
def test_what_is_no_dict_with_names_is_refused(encoded: bytes) -> None:
    with pytest.raises(StateMismatch, match="cannot be read"):
        items_of(encoded)
