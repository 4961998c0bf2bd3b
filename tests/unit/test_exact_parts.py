"""Exact batches, without processes: who computes what, in which order sums are made, what noise belongs to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import ElasticSampler, ElasticStream, ExactMisuse, KeyedRandom, StateMismatch, derive_seed
from ftrain.exact.exchange import NOTHING, add_gradients
from ftrain.exact.shares import Cut, Shares
from ftrain.exact.tree import FixedTree, nodes_of


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_every_micro_batch_is_computed_once_and_shares_are_near_equal(count: int, world: int, in_turn: bool) -> None:
    shares = [Shares(count, rank, world, in_turn) for rank in range(world)]
    assert sorted(number for share in shares for number in share.own) == list(range(count))
    sizes = [len(share.own) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == shares[0].rounds_max


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.data())
def test_micro_batches_make_up_the_global_batch(global_batch: int, data: st.DataObject) -> None:
    cut = Cut(global_batch, data.draw(st.integers(1, global_batch)))
    samples = [sample for number in range(cut.count) for sample in cut.samples(number)]
    assert samples == list(range(global_batch))
    assert {len(cut.samples(number)) for number in range(cut.count - 1)} <= {cut.size}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_a_tree_gives_the_same_bits_whatever_the_world(
    count: int, world: int, other: int, in_turn: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    leaves = (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype(np.float32)
    absent = rng.random(count) < 0.2  # micro-batches in which a parameter had no gradient

    def total(ranks: int, in_turn: bool) -> bytes:
        whole: FixedTree[np.float32] = FixedTree(lambda left, right: left + right)
        for rank in range(ranks):
            own = Shares(count, rank, ranks, in_turn).own
            part: FixedTree[np.float32] = FixedTree(lambda left, right: left + right)
            for number in own:
                part.put((0, number), np.float32(NOTHING) if absent[number] else leaves[number])
            assert sorted(part.nodes) == nodes_of(own)
            for node in nodes_of(own):
                whole.put(node, part.nodes[node])
        return whole.total().tobytes()  # type: ignore[union-attr]

    assert total(world, in_turn) == total(other, not in_turn) == total(1, False)


def test_a_tree_of_nothing_has_no_total_and_one_leaf_is_its_own() -> None:
    tree: FixedTree[int] = FixedTree(lambda left, right: left + right)
    assert tree.total() is None
    tree.put((0, 5), 7)
    assert (tree.total(), tree.nodes) == (7, {})


def test_rising_leaves_need_as_many_sums_as_the_count_has_digits() -> None:
    assert max(len(nodes_of(range(n))) for n in range(257)) == 8


def test_a_missing_gradient_changes_no_bit() -> None:
    zeros = torch.tensor([0.0, -0.0])
    assert torch.signbit(zeros + NOTHING).tolist() == [False, True]
    assert add_gradients([None, zeros, None], [zeros, None, None]) == [zeros, zeros, None]


def test_seeds_are_fixed_for_all_versions_and_keys_do_not_run_into_each_other() -> None:
    assert derive_seed(0, "dropout", 7) == 10322674958888606943
    keys = [(0, 1, 2), (0, 12), (0, "1", 2), (0, 1, "2"), (0, None, 2), (1, 0, 2), (0, 1), (0, "1,2")]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(0, np.int64(3)) == derive_seed(0, 3)
    with pytest.raises(TypeError):
        derive_seed(0, 1.5)  # type: ignore[arg-type]


def test_keyed_randomness_leaves_the_default_generator_where_it_was() -> None:
    key = KeyedRandom(derive_seed(1, 2))
    before = torch.get_rng_state()
    with key:
        drawn = torch.rand(3)
        with pytest.raises(RuntimeError, match="entered already"):
            key.__enter__()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn, torch.rand(3, generator=key.generator()))
    with key:
        assert torch.equal(drawn, torch.rand(3))


def test_drop_last_leaves_out_what_does_not_fill_a_batch() -> None:
    sampler = ElasticSampler(11, global_batch=4, drop_last=True, rank=0, world_size=1)
    epochs = [[i for step in (2 * epoch, 2 * epoch + 1) for i in sampler.batch(step)] for epoch in range(3)]
    assert [len(set(epoch)) for epoch in epochs] == [8, 8, 8]
    assert len(sampler) == 2
    with pytest.raises(StateMismatch, match="drop_last"):
        ElasticSampler(11, global_batch=4).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="leaves nothing"):
        ElasticSampler(3, global_batch=4, drop_last=True)


def test_a_sampler_of_micro_batches_is_drawn_from_by_the_context_only() -> None:
    sampler = ElasticSampler(20, global_batch=8, micro_batch=3)
    with pytest.raises(ExactMisuse, match=r"ctx\.microbatches"):
        next(iter(sampler))
    with pytest.raises(ValueError, match="micro_batch=9"):
        ElasticSampler(20, global_batch=8, micro_batch=9)


def open_shard(shard: int, start: int) -> Iterator[tuple[int, int]]:
    return ((shard, sample) for sample in range(start, 5 + shard))


def stream(**changed: int) -> ElasticStream:
    return ElasticStream([5 + shard for shard in range(7)], open_shard, global_batch=7, micro_batch=2, **changed)


def read(world: int, position: int, steps: int) -> list[list[tuple[int, int]]]:
    """What the ranks of a world read, step by step, in the order of the micro-batches' numbers."""
    parts = {}
    for rank in range(world):
        part = stream(rank=rank, world_size=world)
        part.load_state_dict({**part.state_dict(), "position": position})
        shares = Shares(part.cut.count, *part.place())
        part.deal(shares)
        taken = islice(part, steps * max(1, len(shares.own)))
        parts |= {(step, n): next(taken) for step in range(steps) for n in shares.own}
    return [sorted(parts[key]) for key in sorted(parts)]


def test_a_stream_is_the_same_at_any_world_size_and_wherever_it_is_taken_up() -> None:
    whole = read(1, 0, 40)
    assert whole == read(3, 0, 40) == read(6, 0, 40)
    assert whole == read(2, 0, 13) + read(5, 13, 20) + read(4, 33, 7)
    assert [len(part) for part in whole[:4]] == [2, 2, 2, 1]


def test_each_lane_of_a_stream_gives_each_of_its_samples_once_an_epoch() -> None:
    lane = islice(stream(rank=0, world_size=1).read_from(1, 0), 2 * (6 + 10))
    seen = list(lane)
    wanted = Counter([(1, i) for i in range(6)] + [(5, i) for i in range(10)])
    assert Counter(seen[:16]) == Counter(seen[16:]) == wanted


def test_a_stream_that_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(ValueError, match="3 shards for 4 micro-batches"):
        ElasticStream([1, 2, 3], open_shard, global_batch=8, micro_batch=2)
    with pytest.raises(ValueError, match="seed=-1 must be"):
        ElasticStream([9], open_shard, global_batch=1, micro_batch=1, seed=-1)
    with pytest.raises(StateMismatch, match="seed"):
        stream(seed=1).load_state_dict(stream().state_dict())
    short = ElasticStream([9], open_shard, global_batch=1, micro_batch=1, rank=0, world_size=1)
    with pytest.raises(ExactMisuse, match="shard 0 ended 4 samples before its length of 9"):
        list(islice(short.read_from(0, 0), 9))
