"""``ctx.mesh``: one dimension gives way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ftrain.context import Context
from ftrain.environment import WorkerEnvironment
from ftrain.errors import MeshImpossible
from ftrain.link import Misfit
from ftrain.logical.errors import LayoutInvalid
from ftrain.mesh import mesh_sizes
from ftrain.outcome import describe_failure


@pytest.mark.parametrize(
    ("names", "sizes", "ranks", "expected"),
    [
        (["dp"], {}, 3, (3,)),
        (["dp", "tp"], {"tp": 2}, 4, (2, 2)),
        (["dp", "tp"], {"tp": 2}, 2, (1, 2)),
        (["pp", "dp", "tp"], {"pp": 2, "tp": 2}, 12, (2, 3, 2)),
        (["dp", "tp"], {"tp": 2, "dp": 2}, 4, (2, 2)),
    ],
)
def test_what_remains_goes_to_the_free_dimension(
    names: list[str], sizes: dict[str, int], ranks: int, expected: tuple[int, ...]
) -> None:
    assert mesh_sizes(names, sizes, ranks) == expected


@pytest.mark.parametrize(
    ("names", "sizes", "ranks", "says"),
    [
        (["dp", "tp"], {"tp": 2}, 3, "a mesh of tp=2 needs a multiple of 2 ranks, the job has 3"),
        (["dp", "tp"], {"tp": 2, "dp": 2}, 8, "a mesh of dp=2 x tp=2 needs 4 ranks, the job has 8"),
    ],
)
def test_a_world_that_does_not_fit_is_told_in_one_line(
    names: list[str], sizes: dict[str, int], ranks: int, says: str
) -> None:
    with pytest.raises(MeshImpossible) as raised:
        mesh_sizes(names, sizes, ranks)
    assert str(raised.value) == says


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ([], {}), (["dp", "dp"], {}), (["dp", "tp"], {}), (["dp"], {"tp": 2}), (["dp"], {"dp": 0}),
        ([["dp", "tp"]], {"tp": 2}), ([2, 4], {}), (["dp", "tp"], {"tp": "2"}), (["dp", "tp"], {"tp": 2.0}),
    ],
)  # fmt: skip
def test_a_call_that_no_world_could_fulfil_is_refused(names: list[Any], sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"mesh"):
        mesh_sizes(names, sizes, 4)


def test_layouts_are_read_at_once_and_before_anything_is_tracked() -> None:
    ctx = Context(WorkerEnvironment(), torch.device("cpu"), None)
    with pytest.raises(LayoutInvalid, match="'world: shart\\(0\\)' is no clause"):
        ctx.layout({"*.weight": "world: shart(0)"})
    ctx.layout({"*.weight": "world: shard(0)"})
    ctx.track(model=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"call ctx\.layout before ctx\.track"):
        ctx.layout({"*.weight": "replicate"})
    assert ctx.snapshot_reader() is None


def test_the_controller_is_told_how_many_ranks_would_fit() -> None:
    with pytest.raises(MeshImpossible) as raised:
        mesh_sizes(["dp", "tp"], {"tp": 2}, 3)
    assert describe_failure(raised.value, None).misfit == Misfit(2, True, "a mesh of tp=2 needs a multiple of 2 ranks")
    with pytest.raises(MeshImpossible) as raised:
        mesh_sizes(["dp", "tp"], {"dp": 2, "tp": 2}, 3)
    misfit = describe_failure(raised.value, None).misfit
    assert misfit is not None
    assert [ranks for ranks in range(1, 9) if misfit.is_met_by(ranks)] == [4]
