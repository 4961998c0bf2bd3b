"""What a sharded tensor is, in numbers: packed, read back without trust, and cut into boxes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.logical.errors import LayoutInvalid
from ftrain.shards import Box, Mesh, Part, ShardSpec, boxes_of, is_first_holder, packed_spec, replaced, unpacked_spec

SQUARE = Mesh("cpu", (2, 2), (0, 1, 2, 3), ("dp", "tp"))
LINE = Mesh("cpu", (3,), (0, 1, 2), None)


def spec(shape: tuple[int, ...], mesh: Mesh, *placements: tuple[str | int, ...]) -> ShardSpec:
    return ShardSpec(shape, tuple(1 for _ in shape), placements, mesh)


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    count = 1
    for size in shape:
        count *= size
    ranks = draw(st.permutations(range(2 * count))) if draw(st.booleans()) else range(5, 5 + count)
    names = tuple("abc"[: len(shape)]) if draw(st.booleans()) else None
    return Mesh("cuda", shape, tuple(ranks)[:count], names)


@given(meshes())
def test_a_mesh_of_any_ranks_comes_back(mesh: Mesh) -> None:
    whole = spec((4, 6), mesh, *[("strided", 0, 2), ("shard", 1), ("partial", "sum")][: len(mesh.shape)])
    assert unpacked_spec(packed_spec(whole)) == whole


def test_a_mesh_in_rows_takes_no_more_room_for_more_ranks() -> None:
    sizes = {len(str(packed_spec(spec((4,), Mesh("cpu", (n,), tuple(range(n)), None), ("shard", 0))))) for n in (8, 9)}
    assert len(sizes) == 1


GOOD = packed_spec(spec((7, 6), SQUARE, ("strided", 0, 2), ("shard", 0)))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, [7]), (1, "x"), (2, [["shard", 0]]), (2, [["shard", 2], ["shard", 0]]),
        (2, [["strided", 0, 0], ["replicate"]]), (2, [["tilted"], ["replicate"]]), (3, 5), (4, [2]), (4, [0, 2]),
        (4, [1 << 30, 1 << 30]), (5, True), (6, [0]), (6, None), (7, ["dp"]),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(place: int, value: Any) -> None:
    with pytest.raises(ValueError, match=r"sharded tensor|no mesh"):
        unpacked_spec([*GOOD[:place], value, *GOOD[place + 1 :]])


@pytest.mark.parametrize("packed", [[], GOOD[:-1], [*GOOD, 1]])
def test_what_is_no_description_is_refused(packed: list[Any]) -> None:
    with pytest.raises(ValueError, match="sharded tensor"):
        unpacked_spec(packed)


def test_uneven_parts_end_where_the_whole_does() -> None:
    rows = spec((7, 2), LINE, ("shard", 0))
    assert boxes_of(rows, 0, (3, 2)) == (Box((0, 0), (0, 0), (3, 2)),)
    assert boxes_of(rows, 2, (1, 2)) == (Box((6, 0), (0, 0), (1, 2)),)
    assert boxes_of(spec((2, 2), LINE, ("shard", 0)), 2, (0, 2)) == ()


def test_fsdp_cuts_what_tensor_parallelism_has_left() -> None:
    """Of 7 rows on 2 x 2 ranks, 0 to 3 are of tp 0: FSDP2 gives 2 and 3 to its second rank."""
    both = spec((7, 2), SQUARE, ("strided", 0, 2), ("shard", 0))
    assert [boxes_of(both, rank, (n, 2))[0].offsets[0] for rank, n in ((0, 2), (2, 2), (1, 2), (3, 1))] == [0, 2, 4, 6]


def test_placements_that_do_not_make_the_part_are_refused() -> None:
    with pytest.raises(LayoutInvalid, match="makes a part"):
        boxes_of(spec((7, 2), LINE, ("shard", 0)), 0, (4, 2))
    with pytest.raises(LayoutInvalid, match="still to be reduced"):
        boxes_of(spec((7, 2), LINE, ("partial", "sum")), 0, (7, 2))
    with pytest.raises(LayoutInvalid, match="rank 3 is not of the mesh"):
        boxes_of(spec((7, 2), LINE, ("shard", 0)), 3, (7, 2))


def test_one_of_the_ranks_with_the_same_part_is_the_first() -> None:
    copies = spec((4,), SQUARE, ("replicate",), ("shard", 0))
    assert [is_first_holder(copies, rank) for rank in range(4)] == [True, True, False, False]


def test_names_of_dimensions_do_not_make_another_layout() -> None:
    one = spec((4,), SQUARE, ("replicate",), ("shard", 0))
    assert one.fits(one._replace(mesh=SQUARE._replace(names=None)))
    assert not one.fits(one._replace(placements=(("shard", 0), ("replicate",))))
    assert not one.fits(one._replace(mesh=SQUARE._replace(ranks=(0, 2, 1, 3))))


def test_it_says_what_it_is_in_a_line() -> None:
    shown = str(spec((7, 6), SQUARE, ("strided", 0, 2), ("shard", 0)))
    assert shown == "[7, 6] as [strided(0, 2), shard(0)] on a mesh dp=2 x tp=2 of ranks 0-3"


def test_parts_are_replaced_wherever_they_are() -> None:
    part = Part(5, spec((7,), LINE, ("shard", 0)))
    tree = {"a": [part, (1, part)], "b": {part, 2}, "c": part}
    assert replaced(tree, lambda each: each.local) == {"a": [5, (1, 5)], "b": {5, 2}, "c": 5}
