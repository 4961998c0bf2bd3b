"""Placement: every group survives exactly as many lost nodes as it has parity, and all carry the same load."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.placement import (
    GROUP_SIZE_MAX,
    Group,
    group_of,
    groups,
    is_complete,
    segment_bytes,
    segment_spans,
)

jobs = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@settings(max_examples=50, deadline=None)
@given(jobs)
def test_groups_are_near_equal_runs_larger_than_the_parity(job):
    nodes, parity = job
    found = groups(nodes, parity)
    assert [p for g in found for p in g] == list(range(nodes))
    sizes = [len(g) for g in found]
    assert min(sizes) > parity
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= GROUP_SIZE_MAX or len(found) == max(1, nodes // (parity + 1))


@pytest.mark.parametrize(("nodes", "parity"), [(0, 0), (1, 1), (2, 2), (4, 7), (3, -1)])
def test_parity_that_the_nodes_cannot_carry_is_refused(nodes, parity):
    with pytest.raises(PlacementImpossible, match=f"{nodes} nodes"):
        groups(nodes, parity)


@settings(max_examples=30, deadline=None)
@given(jobs)
def test_each_member_keeps_as_much_parity_and_data_as_any_other(job):
    nodes, parity = job
    for members in groups(nodes, parity):
        group = Group(members, parity)
        for position in members:
            assert len(group.parity_rotations(position)) == parity
            assert len(group.data_rotations(position)) == group.segments
            for segment, rotation in enumerate(group.data_rotations(position)):
                assert group.segment_of(position, rotation) == segment
        for rotation in range(len(members)):
            assert {*group.data_members(rotation), *group.parity_members(rotation)} == set(members)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_segments_cover_the_unit_in_order_without_overlap(length, segments):
    spans = segment_spans(length, segments)
    assert len(spans) == segments
    assert sum(size for _, size in spans) == length
    assert all(offset + size <= length for offset, size in spans)
    full = segment_bytes(length, segments)
    assert full % 64 == 0
    assert all(offset == min(i * full, length) for i, (offset, _) in enumerate(spans))


@pytest.mark.parametrize(("nodes", "parity"), [(1, 0), (2, 1), (4, 1), (5, 2), (6, 3), (9, 1)])
def test_a_job_is_complete_while_no_group_lost_more_than_its_parity(nodes, parity):
    for count in range(min(nodes, 4) + 1):
        for lost in combinations(range(nodes), count):
            left = set(range(nodes)) - set(lost)
            survives = all(len(set(lost) & set(group)) <= parity for group in groups(nodes, parity))
            assert is_complete(left, left, nodes, parity) is survives


def test_data_without_any_parity_is_complete_only_if_it_is_all_there():
    assert is_complete({0, 1, 2, 3}, set(), 4, 1)
    assert not is_complete({0, 1, 3}, set(), 4, 1)
    assert is_complete({0, 1, 3}, {0, 1, 3}, 4, 1)
    assert not is_complete({0, 1, 3}, {0, 1}, 4, 1)


def test_a_position_finds_its_group():
    assert group_of(5, 10, 1) == Group((5, 6, 7, 8, 9), 1)
