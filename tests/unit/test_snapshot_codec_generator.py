"""The generators: what parity is, whoever computes it."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.codec.generator import decode_rows, inverse, multiply, name_for, rows
from ftrain_snapshot.errors import CodecUnsupported

values = st.integers(0, 255)
STRIPES = [(k, m) for k in range(1, 9) for m in range(1, 5)]


def every_row(data, parity):
    return [tuple(int(i == j) for j in range(data)) for i in range(data)] + list(rows(name_for(parity), data, parity))


def applied(coefficients, matrix):
    """The rows that ``coefficients`` make of ``matrix``."""
    out = []
    for line in coefficients:
        total = [0] * len(matrix[0])
        for factor, row in zip(line, matrix, strict=True):
            total = [t ^ multiply(factor, value) for t, value in zip(total, row, strict=True)]
        out.append(tuple(total))
    return out


@settings(max_examples=100)
@given(values, values, values)
def test_the_field_is_a_field(a, b, c):
    assert multiply(a, b) == multiply(b, a)
    assert multiply(a, multiply(b, c)) == multiply(multiply(a, b), c)
    assert multiply(a, b ^ c) == multiply(a, b) ^ multiply(a, c)
    assert multiply(a, 1) == a
    assert multiply(0x80, 2) == 0x1D
    if a:
        assert multiply(a, inverse(a)) == 1


def test_zero_has_no_inverse():
    with pytest.raises(ZeroDivisionError):
        inverse(0)


def test_the_rows_are_what_is_stored_and_do_not_change():
    assert rows("xor", 3, 1) == ((1, 1, 1),)
    assert rows("pq", 9, 2) == ((1,) * 9, (1, 2, 4, 8, 16, 32, 64, 128, 29))
    assert rows("cauchy", 4, 3) == ((1, 1, 1, 1), (166, 70, 187, 123), (245, 104, 143, 82))


@pytest.mark.parametrize(("data", "parity"), [s for s in STRIPES if s != (8, 4)])
def test_any_k_chunks_give_all_others(data, parity):
    check_losses(data, parity, list(combinations(range(data + parity), parity)))


@pytest.mark.parametrize("part", range(5))
def test_any_eight_chunks_of_twelve_give_all_others(part):
    check_losses(8, 4, list(combinations(range(12), 4))[part::5])


def check_losses(data, parity, losses):
    every = every_row(data, parity)
    for lost in losses:
        present = [i for i in range(data + parity) if i not in lost]
        found = decode_rows(name_for(parity), data, parity, present, lost)
        assert applied(found, [every[p] for p in present]) == [every[w] for w in lost]


def test_sources_may_come_in_any_order_and_what_is_present_may_be_wanted():
    every = every_row(3, 2)
    found = decode_rows("pq", 3, 2, (4, 1, 3), (0, 1, 2, 3, 4))
    assert applied(found, [every[4], every[1], every[3]]) == every
    assert found[1] == (0, 1, 0)


def test_as_wide_a_stripe_as_the_field_allows_survives_two_losses():
    ones, powers = rows("pq", 253, 2)
    assert set(ones) == {1}
    assert len(set(powers)) == 253  # any two columns are independent
    assert 0 not in powers


@pytest.mark.parametrize(
    ("present", "wanted"),
    [((0, 1), (2,)), ((0, 1, 1), (2,)), ((0, 1, 5), (2,)), ((0, 1, 3), (-1,)), ((0, 1, 3, 4), (2,))],
)
def test_what_is_no_set_of_k_chunks_is_refused(present, wanted):
    with pytest.raises(ValueError, match="cannot be had"):
        decode_rows("pq", 3, 2, present, wanted)


@pytest.mark.parametrize(
    ("name", "data", "parity", "said"),
    [
        ("xor", 3, 2, "'pq' is"),
        ("pq", 3, 1, "'xor' is"),
        ("cauchy", 3, 2, "'pq' is"),
        ("cauchy", 252, 4, "255 in all"),
        ("pq", 0, 2, "1 data chunk"),
        ("raptor", 3, 1, "newer ftrain"),
    ],
)
def test_what_a_generator_is_not_for_is_refused(name, data, parity, said):
    with pytest.raises(CodecUnsupported, match=said):
        rows(name, data, parity)


def test_each_parity_has_its_generator():
    assert [name_for(m) for m in range(1, 6)] == ["xor", "pq", "cauchy", "cauchy", "cauchy"]
    with pytest.raises(CodecUnsupported, match="parity 0"):
        name_for(0)
