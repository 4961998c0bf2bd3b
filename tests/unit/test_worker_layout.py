from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain.layout import REGION_ORDER, Kind, Layout, flat_bytes, is_dense, lay_out, materialized_bytes


def layout_of(sizes: list[tuple[int, bool]], world_size: int) -> Layout:
    tensors = [torch.zeros(size, dtype=torch.uint8) for size, _ in sizes]
    names = [f"t{index}" for index in range(len(sizes))]
    return lay_out(tensors, names, [Kind(shared, bool(i % 2)) for i, (_, shared) in enumerate(sizes)], world_size)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=12), st.integers(1, 7))
def test_every_byte_has_one_place(sizes: list[tuple[int, bool]], world_size: int) -> None:
    """Over all ranks each replicated byte is kept once, each private one once per rank, nothing overlaps."""
    layout = layout_of(sizes, world_size)
    replicated = [[0] * size for size, _ in sizes]
    ends = dict.fromkeys(REGION_ORDER, 0)
    for rank in range(world_size):
        for kind in REGION_ORDER:
            if kind.replicated:
                start, end = layout.share(rank, kind)
                assert start == ends[kind]
                ends[kind] = end
        taken = [False] * layout.region_bytes(rank)
        for piece in layout.region_pieces(rank):
            place = range(piece.region_offset, piece.region_offset + piece.end - piece.start)
            assert not any(taken[byte] for byte in place)
            for byte in place:
                taken[byte] = True
            for byte in range(piece.start, piece.end):
                replicated[piece.index][byte] += 1
    for (_, shared), counts in zip(sizes, replicated, strict=True):
        assert all(count == (1 if shared else world_size) for count in counts)


def test_shares_are_near_equal() -> None:
    layout = layout_of([(10_000, True)], 4)
    shares = [layout.share(rank, layout.specs[0].kind) for rank in range(4)]
    lengths = [end - start for start, end in shares]
    assert max(lengths) - min(lengths) <= 128


def test_the_digest_is_that_of_the_replicated_part_alone() -> None:
    one = layout_of([(100, True), (7, False)], 2)
    assert one.digest == layout_of([(100, True), (9, False)], 2).digest
    assert one.digest != layout_of([(101, True), (7, False)], 2).digest
    assert one.digest != layout_of([(100, True), (7, False)], 3).digest


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(3, 4), True),
        (torch.zeros(3, 4).t(), True),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.zeros(()), True),
        (torch.zeros(0, 3), True),
        (torch.zeros(6)[::2], False),
        (torch.zeros(1).expand(4), False),
    ],
)
def test_dense_tensors_are_told_apart(tensor: torch.Tensor, dense: bool) -> None:
    assert is_dense(tensor) is dense
    assert (flat_bytes(tensor) is not None) is dense


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.int64, torch.uint16]
)
def test_all_dtypes_have_bytes(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).to(dtype).reshape(3, 4).t()
    flat = flat_bytes(tensor)
    assert flat is not None
    assert flat.data_ptr() == tensor.data_ptr()
    assert len(flat) == 12 * tensor.element_size()


def test_a_lazy_conjugate_is_copied() -> None:
    tensor = torch.tensor([1 + 2j]).conj()
    assert flat_bytes(tensor) is None
    assert materialized_bytes(tensor).view(torch.complex64).item() == 1 - 2j
