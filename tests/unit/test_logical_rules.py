from __future__ import annotations

from typing import Any

import pytest

from ftrain.logical.axes import Span
from ftrain.logical.errors import LayoutInvalid
from ftrain.logical.placements import Located, Scope, Shard, Spread
from ftrain.logical.rules import NamedMesh, Rules


def located(text: str, local_shape: tuple[int, ...], coordinate: tuple[int, int] = (0, 1)) -> Located:
    found = Rules({"*": text}).locate("w", local_shape, NamedMesh(("dp", "tp"), (3, 2), coordinate))
    assert found is not None
    return found


def test_the_first_pattern_that_fits_holds() -> None:
    rules = Rules({"*.norm.*": "replicate", "layers.?.*": "tp: shard(0)", "[ab]": "unique"})
    assert rules.match("layers.3.norm.weight") == rules.match("x.norm.bias")
    assert [(rules.match(name) or ("",))[0] for name in ("layers.3.w", "layers.33.w", "a", "c")] == [
        "layers.?.*", "", "[ab]", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("tp: shard(0)", {"tp": Shard(0)}),
        (" tp:shard( 1 ,parts = 2 ) ; pp : unique", {"tp": Shard(1, 2), "pp": Spread.UNIQUE}),
        ("tp: shard(0, parts=[4, [2, 2], 1])", {"tp": Shard(0, (4, 2, 2, 1))}),
        ("dp: average; tp: replicate; ep: shard(0)",
         {"dp": Spread.AVERAGE, "tp": Spread.REPLICATE, "ep": Shard(0)}),
    ],
)  # fmt: skip
def test_clauses_are_read(text: str, clauses: dict[str, object]) -> None:
    found = Rules({"*": text}).match("w")
    assert found is not None
    assert found[1].clauses == tuple(clauses.items())


def test_a_shard_is_of_a_whole_so_many_times_as_long() -> None:
    found = located("tp: shard(1)", (4, 3))
    assert (found.shape, found.axes[1].spans, found.copies) == ((4, 6), (Span(3, 0, 3),), 3)


def test_a_gated_mlp_is_two_parts() -> None:
    assert located("tp: shard(0, parts=2)", (6,)).axes[0].spans == (Span(3, 0, 3), Span(9, 3, 3))


def test_a_fused_qkv_is_three() -> None:
    spans = (Span(4, 0, 4), Span(9, 4, 1), Span(11, 5, 1))
    assert located("tp: shard(0, parts=[8, 2, 2])", (6,)).axes[0].spans == spans


def test_one_part_of_a_given_length_may_be_uneven() -> None:
    assert located("tp: shard(0, parts=[7])", (4,), (0, 0)).shape == (7,)
    assert located("tp: shard(0, parts=[7])", (3,), (0, 1)).axes[0].spans == (Span(4, 0, 3),)


def test_a_padded_vocabulary_is_trimmed() -> None:
    found = located("tp: shard(0); trim(0, 13)", (8, 2))
    assert (found.shape, found.axes[0].size, found.axes[0].spans) == ((13, 2), 8, (Span(8, 0, 5),))


def test_two_dimensions_of_the_mesh_cut_one_after_the_other() -> None:
    found = located("tp: shard(0, parts=2); dp: shard(0)", (2,), (2, 1))
    assert found.shape == (12,)
    assert found.axes[0].spans == (Span(10, 0, 2),)  # tp has 3..6 and 9..12; the last third of these


def test_what_is_said_of_all_ranks() -> None:
    assert located("replicate", (4,))[2:] == (6, Scope.SAME)
    assert located("unique", (4,))[2:] == (1, Scope.SAME)
    assert located("average", (4,))[2:] == (6, Scope.MEAN)
    assert located("per_rank", (4,)).scope is Scope.OWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard(0)", "'shard(0)' is no clause; write 'MESH_DIM: shard(DIM)', "),
        ("tp: shard", "'tp: shard' is no clause"),
        ("tp: shard(0", "is no clause"),
        ("tp: per_rank", "is no clause"),
        ("", "'' is no clause"),
        ("tp: shard(0, parts=x)", "parts=x: a number of equal parts, or a list of their lengths, was expected"),
        ("tp: shard(0, parts=[])", "parts=[]: a number"),
        ("tp: shard(0, parts=0)", "parts=0: a number"),
        ("tp: shard(0, parts=[2, 1.5])", "parts=[2, 1.5]: a number"),
        ("tp: shard(0, parts=100000)", "parts=100000: at most 65536"),
        ("tp: shard(0); tp: shard(1)", "two clauses are about 'tp'"),
        ("replicate; tp: shard(0)", "'replicate' is about all ranks: nothing else may be said beside it"),
        ("per_rank; trim(0, 3)", "'per_rank' is about all ranks"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(LayoutInvalid) as caught:
        Rules({"*.w": text})
    assert str(caught.value).startswith("layout '*.w': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, ["tp: shard(0)"], {"*": None}, {"*": b"replicate"}, {5: "replicate"}])
def test_what_is_no_mapping_of_patterns_is_refused_in_one_line(wrong: Any) -> None:
    with pytest.raises(LayoutInvalid, match=r"a layout is patterns of names .*, not "):
        Rules(wrong)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("cp: shard(0)", (4,), "the mesh has no dimension 'cp'; it has dp, tp"),
        ("tp: shard(1)", (4,), "there is no dimension 1 in shape (4,)"),
        ("tp: shard(0, parts=[9])", (5,), "this rank's part has shape (5,), by the rule it would have (4,)"),
        ("tp: shard(0); trim(0, 9)", (4,), "shape (8,) cannot be trimmed to 9 in dimension 0"),
    ],
)
def test_a_rule_that_does_not_fit_names_pattern_and_tensor(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(LayoutInvalid) as caught:
        located(text, shape)
    assert str(caught.value) == f"layout '*', tensor w: {message}"
