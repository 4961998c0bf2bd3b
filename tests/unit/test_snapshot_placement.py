"""Placement: every group survives exactly as many lost nodes as it has parity, and all carry the same load."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain_snapshot.errors import PlacementImpossible
from ftrain_snapshot.placement import (
    GROUP_SIZE_MAX,
    Group,
    check_groups,
    group_of,
    groups,
    is_complete,
)

jobs = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))
single_groups = st.integers(0, 4).flatmap(
    lambda m: st.integers(m + 1, m + 8).map(lambda n: Group(tuple(range(3, 3 + 2 * n, 2)), m))
)
labelled = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e"]), min_size=1, max_size=16)


def most_in_one_domain(domains, members):
    return max(Counter(domains[p] for p in members if domains[p]).values(), default=1)


@settings(max_examples=50, deadline=None)
@given(jobs)
def test_groups_of_unlabelled_nodes_are_near_equal_runs_larger_than_the_parity(job):
    nodes, parity = job
    found = groups(nodes, parity)
    assert found == groups([""] * nodes, parity)
    assert [p for g in found for p in g] == list(range(nodes))
    sizes = [len(g) for g in found]
    assert min(sizes) > parity
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= GROUP_SIZE_MAX or len(found) == max(1, nodes // (parity + 1))


@pytest.mark.parametrize(("nodes", "parity"), [(0, 0), (1, 1), (2, 2), (4, 7), (3, -1)])
def test_parity_that_the_nodes_cannot_carry_is_refused(nodes, parity):
    with pytest.raises(PlacementImpossible, match=f"{nodes} nodes"):
        groups(nodes, parity)


@settings(max_examples=80, deadline=None)
@given(labelled, st.integers(1, 4))
def test_members_share_no_domain_where_that_is_possible_and_any_domain_may_be_lost(domains, parity):
    nodes = len(domains)
    largest = most_in_one_domain(domains, range(nodes))
    group_count_max = nodes // (parity + 1)
    try:
        found = groups(domains, parity)
    except PlacementImpossible:
        # Pigeons and holes: in the fullest of as many groups as there can be, one domain has more than the parity.
        assert group_count_max == 0 or -(-largest // group_count_max) > parity
        return
    assert sorted(p for g in found for p in g) == list(range(nodes))
    assert all(list(g) == sorted(g) and len(g) > parity for g in found)
    sizes = [len(g) for g in found]
    assert max(sizes) - min(sizes) <= 1
    worst = max(most_in_one_domain(domains, g) for g in found)
    assert worst <= (1 if largest <= group_count_max else parity)
    assert found == groups(list(domains), parity)


@pytest.mark.parametrize(
    ("domains", "parity", "expected"),
    [
        ("aabb", 1, ((0, 2), (1, 3))),
        ("abab", 1, ((0, 1), (2, 3))),
        ("aabb", 2, ((0, 1, 2, 3),)),
        ("aabbccdd", 1, ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("aabbcc", 1, ((0, 2, 4), (1, 3, 5))),
        ("aabbc", 1, ((0, 2, 4), (1, 3))),
        ("aaabb", 0, ((0, 1, 2, 3, 4),)),
        ("abcdefghij", 1, ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))),
    ],
)
def test_groups_over_domains(domains, parity, expected):
    assert groups(domains, parity) == expected


def test_an_unlabelled_node_is_a_domain_of_its_own():
    assert groups(["a", "a", "", ""], 1) == ((0, 2), (1, 3))


@pytest.mark.parametrize(
    ("domains", "parity", "said"),
    [
        (
            "aaab",
            1,
            "parity 1 cannot make up for the loss of failure domain 'a': it has 3 of 4 nodes, at most 2 may be in one "
            "domain (nodes by domain: a 3, b 1): use --parity 3, or spread the nodes evenly over 2 domains or more",
        ),
        (
            "aaa",
            1,
            "parity 1 cannot make up for the loss of failure domain 'a': it has 3 of 3 nodes, at most 1 may be in one "
            "domain (nodes by domain: a 3): spread the nodes evenly over 3 domains or more",
        ),
        (
            ["rack1", "rack1", ""],
            1,
            "parity 1 cannot make up for the loss of failure domain 'rack1': it has 2 of 3 nodes, at most 1 may be in "
            "one domain (nodes by domain: rack1 2, unlabelled 1): use --parity 2, or spread the nodes evenly over 3 "
            "domains or more",
        ),
    ],
)
def test_what_the_labels_make_impossible_is_refused_with_what_would_be_possible(domains, parity, said):
    with pytest.raises(PlacementImpossible) as refusal:
        groups(domains, parity)
    assert str(refusal.value) == said


@settings(max_examples=50, deadline=None)
@given(labelled, st.integers(1, 4))
def test_the_parity_that_a_refusal_proposes_is_possible(domains, parity):
    try:
        groups(domains, parity)
    except PlacementImpossible as refusal:
        _, found, rest = str(refusal).partition("use --parity ")
        if found:
            groups(domains, int(rest.split(",")[0]))


@settings(max_examples=20, deadline=None)
@given(single_groups)
def test_each_member_keeps_as_much_parity_and_data_as_any_other(group):
    for position in group.members:
        assert len(group.parity_rotations(position)) == group.parity
        assert len(group.data_rotations(position)) == group.data
        for rotation in group.data_rotations(position):
            assert position in group.data_members(rotation)
        for rotation in group.parity_rotations(position):
            assert group.parity_members(rotation)[group.row_of(position, rotation)] == position
    for rotation in range(len(group.members)):
        assert sorted(group.data_members(rotation) + group.parity_members(rotation)) == list(group.members)
        assert list(group.data_members(rotation)) == sorted(group.data_members(rotation))


@settings(max_examples=40, deadline=None)
@given(single_groups, st.integers(0, 60))
def test_each_chunk_has_one_place_in_one_stripe(group, chunks):
    for position in group.members:
        places = [(group.rotation_of(position, c), group.stripe_of(c)) for c in range(chunks)]
        assert len(set(places)) == chunks
        assert [group.chunk_of(position, rotation, stripe) for rotation, stripe in places] == list(range(chunks))


@settings(max_examples=40, deadline=None)
@given(single_groups, st.data())
def test_any_lost_members_leave_k_chunks_of_each_stripe_however_long_the_units(group, data):
    chunks = {p: data.draw(st.integers(0, 20)) for p in group.members}
    lost = data.draw(st.permutations(group.members))[: group.parity]
    stripes = {(group.rotation_of(p, c), group.stripe_of(c)) for p in group.members for c in range(chunks[p])}
    for rotation, stripe in stripes:
        holders = group.data_members(rotation) + group.parity_members(rotation)
        left = [p for p in holders if p not in lost]  # one whose unit is shorter counts: its zeros are known
        assert len(left) >= group.data
        assert any(group.chunk_of(p, rotation, stripe) < chunks[p] for p in group.data_members(rotation))


@settings(max_examples=40, deadline=None)
@given(single_groups, st.integers(0, 200))
def test_equal_units_load_all_members_alike_but_for_one_chunk_a_stripe(group, chunks):
    kept: Counter[int] = Counter()
    stripes = {(group.rotation_of(p, c), group.stripe_of(c)) for p in group.members for c in range(chunks)}
    for rotation, _ in stripes:
        kept.update(group.parity_members(rotation))
    spread = [kept[p] for p in group.members]
    assert max(spread) - min(spread) <= group.parity  # the last row of stripes may not go all the way round


def test_a_position_outside_of_the_group_is_refused():
    with pytest.raises(ValueError, match="position 7"):
        Group((0, 1, 2), 1).rotation_of(7, 0)


@pytest.mark.parametrize(
    ("formed", "parity"),
    [
        (((0, 1), (2,)), 1),
        (((0, 1), (2, 3)), 2),
        (((0, 1), (1, 2, 3)), 1),
        (((0, 1, 2),), 1),
        (((0, 1, 2, 4),), 1),
        (((), (0, 1, 2, 3)), 1),
    ],
)
def test_groups_that_are_not_those_of_the_job_are_refused(formed, parity):
    check_groups(groups(4, 1), 4, 1)
    with pytest.raises(PlacementImpossible, match="4 nodes with parity"):
        check_groups(formed, 4, parity)


@pytest.mark.parametrize(
    ("grouping", "parity"),
    [(1, 0), (2, 1), (4, 1), (5, 2), (6, 3), (9, 1), (((0, 2, 4), (1, 3)), 1), (((0, 3, 4, 5), (1, 2, 6)), 2)],
)
def test_a_job_is_complete_while_no_group_lost_more_than_its_parity(grouping, parity):
    formed = groups(grouping, parity) if isinstance(grouping, int) else grouping
    nodes = sum(map(len, formed))
    for count in range(min(nodes, 4) + 1):
        for lost in combinations(range(nodes), count):
            left = set(range(nodes)) - set(lost)
            survives = all(len(set(lost) & set(group)) <= parity for group in formed)
            assert is_complete(left, left, grouping, parity) is survives


def test_data_without_any_parity_is_complete_only_if_it_is_all_there():
    assert is_complete({0, 1, 2, 3}, set(), 4, 1)
    assert not is_complete({0, 1, 3}, set(), 4, 1)
    assert is_complete({0, 1, 3}, {0, 1, 3}, 4, 1)
    assert not is_complete({0, 1, 3}, {0, 1}, 4, 1)


def test_a_position_finds_its_group():
    assert group_of(5, 10, 1) == Group((5, 6, 7, 8, 9), 1)
    assert group_of(1, ((0, 2, 4), (1, 3)), 1) == Group((1, 3), 1)
