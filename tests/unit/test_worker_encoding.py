from __future__ import annotations

import enum
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.encoding import Packer, unpack
from ftrain.errors import NotTrackable


def round_trip(value: Any) -> Any:
    tensors: list[torch.Tensor] = []

    def add(tensor: torch.Tensor, path: Any) -> int:
        tensors.append(tensor)
        return len(tensors) - 1

    packed = msgspec.msgpack.encode(Packer(add).pack(value))
    return unpack(msgspec.msgpack.decode(packed), tensors)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.frozensets(scalars, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=20, deadline=None)
@given(values)
def test_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    back = round_trip(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, dict | frozenset | list | tuple)


@pytest.mark.parametrize(
    "value",
    [
        2**200,
        -(2**70),
        float("inf"),
        1 + 2j,
        "\ud800 lone surrogate",
        OrderedDict([("b", 1), ("a", 2)]),
        {1: "a", False: "b", None: "c", (1, "x"): "d", b"k": "e", 2.5: "f"},
        {3, 1},
        Counter("hello"),
        defaultdict(list, {"a": [1]}),
        defaultdict(None, {"a": 1}),
        deque([1, 2, 3], maxlen=5),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cpu"),
        np.float32(1.5),
        np.float64(0.1),
        np.int64(7),
        np.bool_(True),
        np.datetime64("2024-01-01"),
        np.str_(""),
        np.bytes_(b""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_special_types_come_back_as_what_they_were(value: Any) -> None:
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)
    if isinstance(value, dict):
        assert list(back.items()) == list(value.items())
    if isinstance(value, defaultdict):
        assert back.default_factory is value.default_factory
    if isinstance(value, deque):
        assert back.maxlen == value.maxlen


def test_numpy_arrays_come_back_writable() -> None:
    array = np.arange(6, dtype=">i2").reshape(2, 3).T
    back = round_trip({"a": array})["a"]
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    back[0, 0] = 9


def test_the_version_numbers_of_a_modules_state_come_along() -> None:
    state = torch.nn.BatchNorm1d(2).state_dict()
    back = round_trip(state)
    assert type(back) is OrderedDict
    assert back._metadata == state._metadata


class Color(enum.IntEnum):
    RED = 1


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        ({"scheduler": {"lr_lambdas": [lambda epoch: 1]}}, "scheduler.lr_lambdas[0]", "function"),
        ({"a": {"b": Color.RED}}, "a.b", "Color"),
        ({"a": [0, (1, Pair(1, 2))]}, "a[1][1]", "Pair"),
        ({"a": np.array([object()])}, "a", "numpy.ndarray"),
        ({"a": defaultdict(lambda: 3)}, "a", "defaultdict"),
        ({"a": object()}, "a", "object"),
        ({"a": bytearray(b"x")}, "a", "bytearray"),
    ],
)
def test_a_value_that_cannot_be_kept_is_named_with_path_and_type(value: Any, path: str, kind: str) -> None:
    with pytest.raises(NotTrackable) as caught:
        round_trip(value)
    assert caught.value.path == path
    assert kind in caught.value.kind


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotTrackable, match="contain itself"):
        round_trip({"a": loop})
