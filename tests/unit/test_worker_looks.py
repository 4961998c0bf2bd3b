"""Tensors and dictionaries asked all at once: the library and Python see the same."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch

from ftrain import looks
from ftrain.looks import Containers, Placed, Tensors


@pytest.fixture(params=["library", "python"], autouse=True)
def asked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(looks, "_native", lambda: None)
    elif looks._native() is None:
        pytest.skip("the library is not built here (python -m ftrain.comm.library)")


def test_places_and_versions_are_those_of_torch() -> None:
    tensors = [torch.zeros(n) for n in range(100)]
    placed = Placed(tensors)
    in_place, versions = placed.look()
    assert in_place
    assert not versions.any()
    tensors[3].add_(1)
    tensors[97][:2].mul_(2)
    in_place, versions = placed.look()
    assert in_place
    assert versions.tolist() == [tensor._version for tensor in tensors]
    before = tensors[5].data
    tensors[5].data = torch.zeros(5)
    assert not placed.look()[0]
    tensors[5].data = before
    assert placed.look()[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.t_(),
        lambda tensor: setattr(tensor, "data", tensor.data.t()),
        lambda tensor: setattr(tensor, "data", tensor.data.view(9, 1)),
        lambda tensor: setattr(tensor, "data", tensor.data.conj()),
        lambda tensor: setattr(tensor, "data", tensor.data.view(torch.int64)),
    ],
    ids=["transposed", "transposed by data", "another shape", "conjugated", "another dtype"],
)
def test_a_tensor_whose_bytes_are_read_in_another_way_is_not_the_same(change: Any) -> None:
    tensors = [torch.zeros(3, 3, dtype=torch.complex64) for _ in range(60)]
    placed = Placed(tensors)
    assert placed.look()[0]
    change(tensors[41])
    assert not placed.look()[0]


def test_a_tensor_that_was_swapped_for_another_has_moved() -> None:
    tensors = [torch.zeros(100) for _ in range(10)]
    placed = Placed(tensors)
    torch.utils.swap_tensors(tensors[4], torch.ones(100))
    assert not placed.look()[0]
    assert [tensor.sum().item() for tensor in tensors].count(100.0) == 1


def test_parameters_and_subclasses_are_found_by_the_library() -> None:
    class Kind(torch.Tensor):
        pass

    tensors = [torch.nn.Parameter(torch.zeros(3)), torch.zeros(3).as_subclass(Kind), torch.zeros(3)]
    assert (Placed(tensors)._native is None) == (looks._native() is None)


def test_gradients_are_seen() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(40)]
    asked = Tensors(parameters)
    assert not asked.have_gradients()
    parameters[-1].sum().backward()
    assert asked.have_gradients()
    parameters[-1].grad = None
    assert not asked.have_gradients()


def test_no_tensors_are_asked_as_well() -> None:
    in_place, versions = Placed(()).look()
    assert in_place
    assert versions.tolist() == []
    assert not Tensors(()).have_gradients()


def test_a_tensor_that_torch_does_not_count_for_has_no_version() -> None:
    with torch.inference_mode():
        uncounted = torch.zeros(2)
    counted = torch.zeros(2).add_(1)
    in_place, versions = Placed([uncounted, counted]).look()
    assert in_place
    assert versions.tolist() == [0, 1]


def test_what_cannot_be_asked_at_once_is_asked_by_python() -> None:
    sparse = torch.zeros(3).to_sparse()
    with pytest.raises(RuntimeError):
        Placed([sparse])
    meta = torch.zeros(3, device="meta")
    assert Placed([torch.zeros(1), meta]).look()[1].tolist() == [0, 0]


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
    held = Containers(dictionaries=dictionaries)
    assert held.are_same()
    change(dictionaries)
    assert not held.are_same()


def test_what_dictionaries_hold_is_kept_alive() -> None:
    dictionaries = [{"a": object()}]
    held = Containers(dictionaries=dictionaries)
    for _ in range(1000):  # a new object must not be taken for the old one at the same address
        dictionaries[0]["a"] = object()
        assert not held.are_same()


def test_members_are_looked_at_under_their_keys_alone() -> None:
    first, second = {"x": [], "y": {}, "z": 1}, {"x": (1,), "y": None, "other": 2}
    held = Containers(members=[first, second], keys=["x", "y"])
    assert held.items == ["x", [], "y", {}, "x", (1,), "y", None]
    first["z"] = 2
    assert held.are_same()
    first["y"] = {}
    assert not held.are_same()


@pytest.mark.parametrize(
    "change",
    [
        lambda one, other: one.append(other[0]),
        lambda one, other: one.pop(),
        lambda one, other: other.insert(0, one.pop()),
        lambda one, other: one.reverse(),
    ],
    ids=["one more", "one less", "one that changes over", "the order"],
)
@pytest.mark.parametrize("kind", [list, deque])
def test_a_change_of_any_list_is_seen(change: Any, kind: Any) -> None:
    """Also where it is none that the library knows."""
    one, other = kind([object(), object()]), kind([object()])
    held = Containers(lists=[one, other], dictionaries=[{"a": 1}], members=[{"b": 2}], keys=["b"])
    assert held.are_same()
    change(one, other)
    assert not held.are_same()


def test_other_containers_can_hold_the_same() -> None:
    thing = object()
    held = Containers(lists=[[thing]], dictionaries=[{"a": thing}])
    assert Containers(lists=[(thing,)], dictionaries=[{"a": thing}]).held_as(held)
    assert not Containers(lists=[[thing]], dictionaries=[{"a": object()}]).held_as(held)
    assert not Containers(lists=[[thing, "a", thing]], dictionaries=[{}]).held_as(held)
