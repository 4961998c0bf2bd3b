"""Tensors and dictionaries asked all at once: the library and Python see the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftrain import looks
from ftrain.looks import Dictionaries, Members, Tensors


@pytest.fixture(params=["library", "python"], autouse=True)
def asked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(looks, "_native", lambda: None)
    elif looks._native() is None:
        pytest.skip("the library is not built here (python -m ftrain.comm.library)")


def test_addresses_and_versions_are_those_of_torch() -> None:
    tensors = [torch.zeros(n) for n in range(100)]
    asked = Tensors(tensors)
    assert asked.addresses().tolist() == [tensor.data_ptr() for tensor in tensors]
    assert not asked.versions().any()
    tensors[3].add_(1)
    tensors[97][:2].mul_(2)
    assert asked.versions().tolist() == [tensor._version for tensor in tensors]
    moved = tensors[5].data
    tensors[5].data = torch.zeros(5)
    assert asked.addresses()[5] == tensors[5].data_ptr() != moved.data_ptr()


def test_gradients_are_seen() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(40)]
    asked = Tensors(parameters)
    assert not asked.have_gradients()
    parameters[-1].sum().backward()
    assert asked.have_gradients()
    parameters[-1].grad = None
    assert not asked.have_gradients()


def test_no_tensors_are_asked_as_well() -> None:
    assert Tensors(()).addresses().tolist() == []
    assert not Tensors(()).have_gradients()


def test_what_cannot_be_asked_at_once_is_asked_by_python() -> None:
    meta = torch.zeros(3, device="meta")
    assert Tensors([torch.zeros(1), meta]).versions().tolist() == [0, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda dictionaries: dictionaries[1].update(a=[]),
        lambda dictionaries: dictionaries[0].update(new=1),
        lambda dictionaries: dictionaries[2].pop("b"),
        lambda dictionaries: dictionaries[2].update(b=dictionaries[2].pop("a")),
        lambda dictionaries: (dictionaries[2].clear(), dictionaries[2].update(b=2, a=1)),
    ],
    ids=["a value", "a key more", "a key less", "a key for another", "the order"],
)
def test_a_change_of_any_dictionary_is_seen(change: Any) -> None:
    dictionaries: list[dict[str, Any]] = [{}, {"a": object()}, {"a": 1, "b": 2}]
    held = Dictionaries(dictionaries)
    assert held.are_same()
    change(dictionaries)
    assert not held.are_same()


def test_what_dictionaries_hold_is_kept_alive() -> None:
    dictionaries = [{"a": object()}]
    held = Dictionaries(dictionaries)
    for _ in range(1000):  # a new object must not be taken for the old one at the same address
        dictionaries[0]["a"] = object()
        assert not held.are_same()


def test_members_are_looked_at_under_their_keys_alone() -> None:
    first, second = {"x": [], "y": {}, "z": 1}, {"x": (1,), "y": None, "other": 2}
    held = Members([first, second], ["x", "y"])
    assert held.values == [first["x"], first["y"], (1,), None]
    first["z"] = 2
    assert held.are_same()
    first["y"] = {}
    assert not held.are_same()
